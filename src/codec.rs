//! Codecs for calls with small messages.

use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Another codec, with buffers that begin small.
///
/// tonic allocates 8 KiB for each message of a call and as much for its answer, before it knows their
/// size: four fifths of all that a small call allocates, and by way of the allocator's slow road. These
/// buffers begin with 512 bytes and grow as messages need it, which costs larger ones an allocation or two
/// more. What goes over the wire is the same.
///
/// The codec is chosen where the client is generated; servers may have it too:
///
/// ```ignore
/// // build.rs
/// tonic_prost_build::configure()
///     .codec_path("tonic_fleet::codec::Lean::<tonic_prost::ProstCodec<_, _>>")
///     .compile_protos(&["proto/greeter.proto"], &["proto"])?;
/// ```
///
/// Or where a call is made by hand:
///
/// ```
/// use tonic::{Request, Response, Status, client::Grpc};
/// use tonic_fleet::{Channel, codec::Lean};
/// use tonic_prost::ProstCodec;
///
/// async fn greet(channel: Channel, name: String) -> Result<Response<String>, Status> {
///     let mut client = Grpc::new(channel);
///     let path = http::uri::PathAndQuery::from_static("/greeter.Greeter/Greet");
///     let codec = Lean::<ProstCodec<_, _>>::default();
///     client.unary(Request::new(name), path, codec).await
/// }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Lean<C>(C);

/// Large enough for most small messages, small enough for the allocator's fast road.
const BEGIN: usize = 512;

/// As tonic has it: so much of a stream's small messages goes out at once.
const AT_ONCE: usize = 32 << 10;

impl<C: Codec> Codec for Lean<C> {
    type Encode = C::Encode;
    type Decode = C::Decode;
    type Encoder = Lean<C::Encoder>;
    type Decoder = Lean<C::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        Lean(self.0.encoder())
    }

    fn decoder(&mut self) -> Self::Decoder {
        Lean(self.0.decoder())
    }
}

impl<E: Encoder<Error = Status>> Encoder for Lean<E> {
    type Item = E::Item;
    type Error = Status;

    fn encode(&mut self, item: E::Item, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        self.0.encode(item, to)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BEGIN, AT_ONCE)
    }
}

impl<D: Decoder<Error = Status>> Decoder for Lean<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<D::Item>, Status> {
        self.0.decode(from)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BEGIN, AT_ONCE)
    }
}
