//! The two messages of `grpc.health.v1`, which are a field each.

use bytes::{Buf, BufMut};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::wire::{self, Form, varint};

/// `HealthCheckRequest { string service = 1; }` out, `HealthCheckResponse { ServingStatus status = 1; }` in.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Messages;

/// What a server says of a service.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Says {
    Unknown,
    Serving,
    NotServing,
    ServiceUnknown,
    /// A word of later versions.
    Other(u32),
}

const STATUS: u64 = wire::tag(1, Form::Varint);
const SERVICE: u32 = 1;

impl Codec for Messages {
    type Encode = String;
    type Decode = Says;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Messages {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, service: String, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        write(&service, buf);
        Ok(())
    }
}

impl Decoder for Messages {
    type Item = Says;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Says>, Status> {
        let says = read(buf);
        let refuse = || Status::internal("the answer is no HealthCheckResponse");
        says.ok_or_else(refuse).map(Some)
    }
}

/// The default, which is empty, is not written.
fn write(service: &str, buf: &mut impl BufMut) {
    if !service.is_empty() {
        wire::put_bytes(SERVICE, service.as_bytes(), buf);
    }
}

/// The last status counts, and fields of later versions are passed over.
fn read(buf: &mut impl Buf) -> Option<Says> {
    let mut status = 0;
    while buf.has_remaining() {
        let tag = varint(buf)?;
        match tag {
            STATUS => status = varint(buf)?,
            other => wire::skip(buf, other)?,
        }
    }
    // An enum has 32 bits, however it is written.
    Some(match status as u32 {
        0 => Says::Unknown,
        1 => Says::Serving,
        2 => Says::NotServing,
        3 => Says::ServiceUnknown,
        other => Says::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;
    use tonic_health::pb;

    use super::*;

    fn written(service: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(service, &mut bytes);
        bytes
    }

    #[test]
    fn every_status_is_read_as_others_write_it() {
        for (status, says) in [
            (0, Says::Unknown),
            (1, Says::Serving),
            (2, Says::NotServing),
            (3, Says::ServiceUnknown),
            (700, Says::Other(700)),
        ] {
            let bytes = pb::HealthCheckResponse { status }.encode_to_vec();

            assert_eq!(read(&mut &bytes[..]), Some(says));
        }
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let later = b"\x12\x03abc\x08\x01\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0\x28\x96\x01";

        assert_eq!(read(&mut &later[..]), Some(Says::Serving));
    }

    #[test]
    fn what_is_cut_off_or_no_message_is_refused() {
        for bytes in [
            &b"\x08"[..],
            b"\x12\x05abc",
            b"\x19\0",
            b"\x0b\x01",
            &[0xff; 11],
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            assert_eq!(read(&mut &bytes[..]), None, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_service_is_written_as_others_write_it(service in "\\PC{0,300}") {
            let theirs = pb::HealthCheckRequest { service: service.clone() };

            prop_assert_eq!(written(&service), theirs.encode_to_vec());
        }

        #[test]
        fn no_bytes_break_the_reader(bytes: Vec<u8>) {
            let ours = read(&mut &bytes[..]);
            let theirs = pb::HealthCheckResponse::decode(&bytes[..]);

                // What others read is read the same.
            if let (Ok(theirs), Some(ours)) = (theirs, ours) && (0..4).contains(&theirs.status) {
                let known = [Says::Unknown, Says::Serving, Says::NotServing, Says::ServiceUnknown];
                prop_assert_eq!(&ours, &known[theirs.status as usize]);
            }
        }
    }
}
