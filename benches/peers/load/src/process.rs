//! What this process uses.

use std::time::Duration;

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        time::TimeVal,
    },
    unistd::Pid,
};

/// Keeps all threads that this one will start, and itself, on one core. False where that cannot be had.
pub fn pin(core: usize) -> bool {
    let mut cores = CpuSet::new();
    cores.set(core).is_ok() && sched_setaffinity(Pid::from_raw(0), &cores).is_ok()
}

/// User and system time so far.
#[must_use]
pub fn cpu() -> Duration {
    let time =
        |t: TimeVal| Duration::from_micros((t.tv_sec() * 1_000_000 + t.tv_usec()).unsigned_abs());
    getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| time(usage.user_time()) + time(usage.system_time()))
        .unwrap_or_default()
}

/// Resident memory in bytes; zero where there is no /proc.
#[must_use]
pub fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|all| all.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}
