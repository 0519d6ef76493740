//! The contender this is all about, with the codec that tonic's generated clients have: equal to all others.
#![allow(clippy::all, reason = "generated code beside")]

extern crate plain as tonic_prost;

#[path = "../../../../examples/echo/generated.rs"]
#[allow(dead_code, reason = "its servers are elsewhere")]
mod echo;
#[path = "../../common/grpc.rs"]
mod grpc;
mod peer;

fn main() -> std::process::ExitCode {
    load::run::<peer::Fleet>()
}
