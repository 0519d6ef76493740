//! What `volo-build` generates for the echo service, as far as it is used.

use futures_util::stream::BoxStream;
use pilota::{
    FastStr,
    pb::{
        DecodeError, EncodeLengthContext, Message,
        encoding::{DecodeContext, WireType, faststr, skip_field},
    },
};
use volo_grpc::{
    Status,
    body::BoxBody,
    codec::{
        compression::CompressionEncoding,
        decode::{Kind, RecvStream},
        encode::encode,
    },
    message::{RecvEntryMessage, SendEntryMessage},
};

/// `EchoRequest` and `EchoResponse` both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Echo {
    pub message: FastStr,
}

impl Message for Echo {
    fn encoded_len(&self, ctx: &mut EncodeLengthContext) -> usize {
        faststr::encoded_len(ctx, 1, &self.message)
    }

    fn encode_raw(&self, buf: &mut pilota::LinkedBytes) {
        faststr::encode(1, &self.message, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut pilota::Bytes,
        ctx: &mut DecodeContext,
        _is_root: bool,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => faststr::merge(wire_type, &mut self.message, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }
}

/// What is sent in a call.
pub struct Said(BoxStream<'static, Result<Echo, Status>>);

impl From<BoxStream<'static, Result<Echo, Status>>> for Said {
    fn from(said: BoxStream<'static, Result<Echo, Status>>) -> Self {
        Self(said)
    }
}

impl SendEntryMessage for Said {
    fn into_body(
        self,
        compression: Option<CompressionEncoding>,
    ) -> BoxStream<'static, Result<http_body::Frame<pilota::Bytes>, Status>> {
        encode(self.0, compression)
    }
}

/// What comes back.
pub struct Echoes(pub RecvStream<Echo>);

impl RecvEntryMessage for Echoes {
    fn from_body(
        _: Option<&str>,
        body: BoxBody,
        kind: Kind,
        compression: Option<CompressionEncoding>,
    ) -> Result<Self, Status> {
        Ok(Self(RecvStream::new(body, kind, compression)))
    }
}
