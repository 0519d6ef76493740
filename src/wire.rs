//! The few forms of protobuf that are read and written here, and not by generated code.

use bytes::{Buf, BufMut};

/// A field's number and how it is written.
pub(crate) const fn tag(field: u32, form: Form) -> u64 {
    (field as u64) << 3 | form as u64
}

/// How a field is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// A number, seven bits a byte.
    Varint = 0,
    /// Eight bytes, the lowest first.
    Double = 1,
    /// A length, and so many bytes.
    Bytes = 2,
}

/// A number, if it is whole and no longer than one can be.
pub(crate) fn varint(buf: &mut impl Buf) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = buf.has_remaining().then(|| buf.get_u8())?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn double(buf: &mut impl Buf) -> Option<f64> {
    (buf.remaining() >= 8).then(|| buf.get_f64_le())
}

/// The length of what follows, if that is all there.
pub(crate) fn length(buf: &mut impl Buf) -> Option<usize> {
    let length = usize::try_from(varint(buf)?).ok()?;
    (length <= buf.remaining()).then_some(length)
}

/// Passes over the field with this tag, of which nobody knows what it says.
pub(crate) fn skip(buf: &mut impl Buf, tag: u64) -> Option<()> {
    let length = match tag & 7 {
        0 => return varint(buf).map(drop),
        1 => 8,
        2 => length(buf)?,
        5 => 4,
        _ => return None,
    };
    (length <= buf.remaining()).then(|| buf.advance(length))
}

pub(crate) fn put_varint(mut value: u64, buf: &mut impl BufMut) {
    while value > 0x7f {
        buf.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// The default, which is 0, is not written.
pub(crate) fn put_double(field: u32, value: f64, buf: &mut impl BufMut) {
    if value != 0.0 {
        put_varint(tag(field, Form::Double), buf);
        buf.put_f64_le(value);
    }
}

/// Written even if it is empty.
pub(crate) fn put_bytes(field: u32, bytes: &[u8], buf: &mut impl BufMut) {
    put_varint(tag(field, Form::Bytes), buf);
    put_varint(bytes.len() as u64, buf);
    buf.put_slice(bytes);
}
