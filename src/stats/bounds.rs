//! The bounds of histograms: those that gRPC's metrics have in every language.

/// Upper bounds of latencies, in nanoseconds; what is slower than the last has a bucket of its own.
pub(crate) const TIMES: [u64; 41] = {
    const MICROS: [u64; 41] = [
        0,
        10,
        50,
        100,
        300,
        600,
        800,
        1_000,
        2_000,
        3_000,
        4_000,
        5_000,
        6_000,
        8_000,
        10_000,
        13_000,
        16_000,
        20_000,
        25_000,
        30_000,
        40_000,
        50_000,
        65_000,
        80_000,
        100_000,
        130_000,
        160_000,
        200_000,
        250_000,
        300_000,
        400_000,
        500_000,
        650_000,
        800_000,
        1_000_000,
        2_000_000,
        5_000_000,
        10_000_000,
        20_000_000,
        50_000_000,
        100_000_000,
    ];
    let mut nanos = MICROS;
    let mut n = 0;
    while n < nanos.len() {
        nanos[n] *= 1_000;
        n += 1;
    }
    nanos
};

/// Upper bounds of sizes, in bytes.
pub(crate) const SIZES: [u64; 14] = [
    0,
    1_024,
    2_048,
    4_096,
    16_384,
    65_536,
    262_144,
    1_048_576,
    4_194_304,
    16_777_216,
    67_108_864,
    268_435_456,
    1_073_741_824,
    4_294_967_296,
];

/// Upper bounds of how often a call was sent again by its policy, and of how often for free.
pub(crate) const RETRIES: [u64; 5] = [1, 2, 3, 4, 5];
pub(crate) const TRANSPARENT: [u64; 6] = [1, 2, 3, 4, 5, 10];

/// In which bucket a value falls: the first whose bound it does not exceed.
pub(super) fn bucket(bounds: &[u64], value: u64) -> usize {
    bounds.partition_point(|&bound| bound < value)
}

/// The same for a size: most messages are small.
#[inline]
pub(super) fn size_bucket(bytes: u64) -> usize {
    match bytes {
        0 => 0,
        1..=1_024 => 1,
        _ => bucket(&SIZES, bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_value_is_counted_under_the_first_bound_that_it_does_not_exceed() {
        let of =
            |time: Duration| bucket(&TIMES, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));

        assert_eq!(of(Duration::ZERO), 0);
        assert_eq!(of(Duration::from_nanos(1)), 1);
        assert_eq!(of(Duration::from_micros(10)), 1);
        assert_eq!(of(Duration::from_millis(13)), 15);
        assert_eq!(TIMES[15], 13_000_000);
        assert_eq!(of(Duration::from_secs(101)), TIMES.len());
        assert_eq!(of(Duration::MAX), TIMES.len());
        assert_eq!(bucket(&SIZES, 1_025), 2);
        for bytes in [0, 1, 1_024, 1_025, u64::MAX] {
            assert_eq!(size_bucket(bytes), bucket(&SIZES, bytes), "{bytes}");
        }
    }

    #[test]
    fn bounds_grow() {
        for bounds in [&TIMES[..], &SIZES, &RETRIES, &TRANSPARENT] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
