//! The same with our own codec: what a user gets who chooses it where the client is generated.
#![allow(clippy::all, reason = "generated code beside")]

// The generated client looks here for its codec.
extern crate self as tonic_prost;
pub type ProstCodec<T, U> = tonic_fleet::codec::Lean<plain::ProstCodec<T, U>>;

#[path = "../../../../examples/echo/generated.rs"]
#[allow(dead_code, reason = "its servers are elsewhere")]
mod echo;
#[path = "../../common/grpc.rs"]
mod grpc;
mod peer;

fn main() -> std::process::ExitCode {
    load::run::<peer::Fleet>()
}
