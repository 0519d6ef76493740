//! What goes over a stream of reports: a wish, and then reports.

use std::{marker::PhantomData, time::Duration};

use bytes::{Buf, BufMut};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::{Report, report};
use crate::wire::{self, Form};

/// How often somebody wants a report: `OrcaLoadReportRequest`, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Wish(pub(super) Duration);

/// The client's side sends wishes and reads reports; the server's the other way round.
#[derive(Debug)]
pub(super) struct Messages<E, D>(PhantomData<fn(E) -> D>);

/// What is written and read here.
pub(super) trait Message: Sized + Send + 'static {
    fn put(&self, buf: &mut impl BufMut);
    fn read(buf: &mut impl Buf) -> Option<Self>;
}

const INTERVAL: u32 = 1;
const SECONDS: u32 = 1;
const NANOS: u32 = 2;

impl Message for Wish {
    fn put(&self, buf: &mut impl BufMut) {
        let mut time = Vec::new();
        for (field, part) in [
            (SECONDS, self.0.as_secs()),
            (NANOS, self.0.subsec_nanos().into()),
        ] {
            if part > 0 {
                wire::put_varint(wire::tag(field, Form::Varint), &mut time);
                // A protobuf's duration is less than 2^63 seconds.
                wire::put_varint(part.min(i64::MAX as u64), &mut time);
            }
        }
        wire::put_bytes(INTERVAL, &time, buf);
    }

    /// What is negative or too long is none.
    fn read(buf: &mut impl Buf) -> Option<Self> {
        const IS_INTERVAL: u64 = wire::tag(INTERVAL, Form::Bytes);
        const IS_SECONDS: u64 = wire::tag(SECONDS, Form::Varint);
        const IS_NANOS: u64 = wire::tag(NANOS, Form::Varint);
        let (mut seconds, mut nanos) = (0, 0);
        while buf.has_remaining() {
            match wire::varint(buf)? {
                IS_INTERVAL => {
                    let length = wire::length(buf)?;
                    let mut buf = buf.take(length);
                    while buf.has_remaining() {
                        match wire::varint(&mut buf)? {
                            IS_SECONDS => seconds = wire::varint(&mut buf)?,
                            IS_NANOS => nanos = wire::varint(&mut buf)?,
                            other => wire::skip(&mut buf, other)?,
                        }
                    }
                }
                other => wire::skip(buf, other)?,
            }
        }
        let seconds = i64::try_from(seconds).unwrap_or(0) as u64;
        let nanos = u32::try_from(nanos)
            .ok()
            .filter(|nanos| *nanos < 1_000_000_000);
        Some(Self(Duration::new(seconds, nanos.unwrap_or(0))))
    }
}

impl Message for Report {
    fn put(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.encode());
    }

    fn read(buf: &mut impl Buf) -> Option<Self> {
        report::read(buf)
    }
}

impl<E, D> Messages<E, D> {
    pub(super) fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E: Message, D: Message> Codec for Messages<E, D> {
    type Encode = E;
    type Decode = D;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new()
    }

    fn decoder(&mut self) -> Self {
        Self::new()
    }
}

impl<E: Message, D: Message> Encoder for Messages<E, D> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, message: E, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message.put(buf);
        Ok(())
    }
}

impl<E: Message, D: Message> Decoder for Messages<E, D> {
    type Item = D;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<D>, Status> {
        let refuse = || Status::internal("this is no message of OpenRcaService, or is cut off");
        D::read(buf).ok_or_else(refuse).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Theirs {
        #[prost(message, tag = "1")]
        report_interval: Option<Time>,
        #[prost(string, repeated, tag = "2")]
        request_cost_names: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Time {
        #[prost(int64, tag = "1")]
        seconds: i64,
        #[prost(int32, tag = "2")]
        nanos: i32,
    }

    fn theirs(time: Option<Time>, names: &[&str]) -> Vec<u8> {
        let names = names.iter().map(|name| (*name).to_owned());
        let request = Theirs {
            report_interval: time,
            request_cost_names: names.collect(),
        };
        request.encode_to_vec()
    }

    proptest! {
        #[test]
        fn a_wish_is_written_and_read_as_others_do(seconds in 0_u64..1 << 40, nanos in 0_u32..1_000_000_000) {
            let wish = Wish(Duration::new(seconds, nanos));
            let time = Time { seconds: seconds as i64, nanos: nanos as i32 };
            let mut bytes = Vec::new();

            wish.put(&mut bytes);

            prop_assert_eq!(&bytes, &theirs(Some(time.clone()), &[]));
            let read = Wish::read(&mut &theirs(Some(time), &["a", "b"])[..]);
            prop_assert_eq!(read, Some(wish));
        }

        #[test]
        fn no_bytes_break_the_reader(bytes: Vec<u8>) {
            let _ = Wish::read(&mut &bytes[..]);
        }
    }

    #[test]
    fn a_time_that_is_none_is_no_time() {
        let time = |seconds, nanos| theirs(Some(Time { seconds, nanos }), &[]);
        for bytes in [
            theirs(None, &[]),
            time(-1, 0),
            time(0, -1),
            time(0, 2_000_000_000),
        ] {
            assert_eq!(Wish::read(&mut &bytes[..]), Some(Wish::default()));
        }
    }
}
