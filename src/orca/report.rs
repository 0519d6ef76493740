//! What a server says of its load, and how it is written.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::{
    Error, ErrorKind, Result,
    binary::bytes_of,
    wire::{self, Form},
};

/// What a server says of its load: `xds.data.orca.v3.OrcaLoadReport`.
///
/// ```
/// use tonic_fleet::orca::Report;
///
/// let mut report = Report::default();
/// report.application_utilization = 0.7;
/// report.rps_fractional = 120.0;
///
/// assert_eq!(Report::decode(&report.encode())?, report);
/// # Ok::<(), tonic_fleet::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// How much of its processors it uses: 1 is all of them, and it may be more.
    pub cpu_utilization: f64,
    /// How much of its memory it uses, from 0 to 1.
    pub mem_utilization: f64,
    /// What the call cost, by whatever name.
    pub request_cost: BTreeMap<String, f64>,
    /// How much of other things it uses, from 0 to 1 each.
    pub utilization: BTreeMap<String, f64>,
    /// Calls a second.
    pub rps_fractional: f64,
    /// Calls a second that fail.
    pub eps: f64,
    /// Whatever else there is to say.
    pub named_metrics: BTreeMap<String, f64>,
    /// How much it is used by its own measure: 1 is as much as it can do, and it may be more.
    pub application_utilization: f64,
}

/// The trailer, or header, that a report comes in with a call.
pub(crate) const TRAILER: &str = "endpoint-load-metrics-bin";

const CPU: u32 = 1;
const MEMORY: u32 = 2;
const COST: u32 = 4;
const UTILIZATION: u32 = 5;
const RPS: u32 = 6;
const EPS: u32 = 7;
const NAMED: u32 = 8;
const APPLICATION: u32 = 9;

impl Report {
    /// Reads one as it goes over the wire. Fields of later versions are passed over.
    ///
    /// # Errors
    /// When the bytes are none, or are cut off.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        read(&mut &bytes[..]).ok_or_else(|| {
            let what = format!("read a load report of {} bytes", bytes.len());
            Error::new(ErrorKind::Decode, what).because("it is no OrcaLoadReport, or is cut off")
        })
    }

    /// As it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        wire::put_double(CPU, self.cpu_utilization, &mut bytes);
        wire::put_double(MEMORY, self.mem_utilization, &mut bytes);
        put_map(COST, &self.request_cost, &mut bytes);
        put_map(UTILIZATION, &self.utilization, &mut bytes);
        wire::put_double(RPS, self.rps_fractional, &mut bytes);
        wire::put_double(EPS, self.eps, &mut bytes);
        put_map(NAMED, &self.named_metrics, &mut bytes);
        wire::put_double(APPLICATION, self.application_utilization, &mut bytes);
        bytes
    }

    /// The one in these headers or trailers of a response, if there is one.
    ///
    /// # Errors
    /// When what is there cannot be read.
    pub fn of(metadata: &HeaderMap) -> Result<Option<Self>> {
        let Some(value) = metadata.get(TRAILER) else {
            return Ok(None);
        };
        match bytes_of(value) {
            Some(bytes) => Self::decode(&bytes).map(Some),
            None => Err(Error::new(
                ErrorKind::Decode,
                format!("read the load report in {TRAILER}"),
            )
            .because("it is no base64")),
        }
    }

    /// Puts it into these headers or trailers, unless there is one.
    pub(crate) fn put_on(&self, metadata: &mut HeaderMap) {
        if metadata.contains_key(TRAILER) {
            return;
        }
        let mut one = MetadataMap::with_capacity(1);
        let bytes = Bytes::from(self.encode());
        one.insert_bin(TRAILER, MetadataValue::from_bytes(&bytes));
        metadata.extend(one.into_headers());
    }
}

/// The last of several values counts, as everywhere in protobuf.
pub(super) fn read(buf: &mut impl Buf) -> Option<Report> {
    const fn double(field: u32) -> u64 {
        wire::tag(field, Form::Double)
    }
    const fn map(field: u32) -> u64 {
        wire::tag(field, Form::Bytes)
    }
    const IS_CPU: u64 = double(CPU);
    const IS_MEMORY: u64 = double(MEMORY);
    const IS_COST: u64 = map(COST);
    const IS_UTILIZATION: u64 = map(UTILIZATION);
    const IS_RPS: u64 = double(RPS);
    const IS_EPS: u64 = double(EPS);
    const IS_NAMED: u64 = map(NAMED);
    const IS_APPLICATION: u64 = double(APPLICATION);

    let mut report = Report::default();
    while buf.has_remaining() {
        match wire::varint(buf)? {
            IS_CPU => report.cpu_utilization = wire::double(buf)?,
            IS_MEMORY => report.mem_utilization = wire::double(buf)?,
            IS_COST => read_entry(buf, &mut report.request_cost)?,
            IS_UTILIZATION => read_entry(buf, &mut report.utilization)?,
            IS_RPS => report.rps_fractional = wire::double(buf)?,
            IS_EPS => report.eps = wire::double(buf)?,
            IS_NAMED => read_entry(buf, &mut report.named_metrics)?,
            IS_APPLICATION => report.application_utilization = wire::double(buf)?,
            other => wire::skip(buf, other)?,
        }
    }
    Some(report)
}

fn read_entry(buf: &mut impl Buf, map: &mut BTreeMap<String, f64>) -> Option<()> {
    const KEY: u64 = wire::tag(1, Form::Bytes);
    const VALUE: u64 = wire::tag(2, Form::Double);
    let length = wire::length(buf)?;
    let mut buf = buf.take(length);
    let (mut key, mut value) = (String::new(), 0.0);
    while buf.has_remaining() {
        match wire::varint(&mut buf)? {
            KEY => {
                let length = wire::length(&mut buf)?;
                let bytes = buf.copy_to_bytes(length);
                key = String::from_utf8(bytes.into()).ok()?;
            }
            VALUE => value = wire::double(&mut buf)?,
            other => wire::skip(&mut buf, other)?,
        }
    }
    map.insert(key, value);
    Some(())
}

fn put_map(field: u32, map: &BTreeMap<String, f64>, bytes: &mut Vec<u8>) {
    for (key, value) in map {
        let mut entry = Vec::with_capacity(key.len() + 12);
        if !key.is_empty() {
            wire::put_bytes(1, key.as_bytes(), &mut entry);
        }
        wire::put_double(2, *value, &mut entry);
        wire::put_bytes(field, &entry, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// As protoc's code has it.
    #[derive(Clone, PartialEq, Message)]
    struct Theirs {
        #[prost(double, tag = "1")]
        cpu_utilization: f64,
        #[prost(double, tag = "2")]
        mem_utilization: f64,
        #[prost(uint64, tag = "3")]
        rps: u64,
        #[prost(btree_map = "string, double", tag = "4")]
        request_cost: BTreeMap<String, f64>,
        #[prost(btree_map = "string, double", tag = "5")]
        utilization: BTreeMap<String, f64>,
        #[prost(double, tag = "6")]
        rps_fractional: f64,
        #[prost(double, tag = "7")]
        eps: f64,
        #[prost(btree_map = "string, double", tag = "8")]
        named_metrics: BTreeMap<String, f64>,
        #[prost(double, tag = "9")]
        application_utilization: f64,
        #[prost(string, tag = "700")]
        later: String,
    }

    fn theirs(report: &Report, rps: u64, later: &str) -> Theirs {
        let report = report.clone();
        Theirs {
            cpu_utilization: report.cpu_utilization,
            mem_utilization: report.mem_utilization,
            rps,
            request_cost: report.request_cost,
            utilization: report.utilization,
            rps_fractional: report.rps_fractional,
            eps: report.eps,
            named_metrics: report.named_metrics,
            application_utilization: report.application_utilization,
            later: later.to_owned(),
        }
    }

    prop_compose! {
        fn reports()(
            numbers in proptest::array::uniform5(-1e3..1e9),
            maps in proptest::array::uniform3(proptest::collection::btree_map("\\PC{0,9}", -1.0..9.0, 0..4)),
        ) -> Report {
            let [request_cost, utilization, named_metrics] = maps;
            Report {
                cpu_utilization: numbers[0],
                mem_utilization: numbers[1],
                rps_fractional: numbers[2],
                eps: numbers[3],
                application_utilization: numbers[4],
                request_cost,
                utilization,
                named_metrics,
            }
        }
    }

    proptest! {
        #[test]
        fn a_report_is_written_and_read_as_others_do(report in reports(), rps: u64, later in "\\PC{0,200}") {
            prop_assert_eq!(report.encode(), theirs(&report, 0, "").encode_to_vec());
            let later = theirs(&report, rps, &later).encode_to_vec();
            prop_assert_eq!(Report::decode(&later).unwrap(), report);
        }

        #[test]
        fn what_is_cut_off_breaks_nothing(report in reports(), at: prop::sample::Index, bytes: Vec<u8>) {
            let whole = report.encode();
            // Where a field ends, what is left is a report as well.
            let _ = Report::decode(&whole[..at.index(whole.len() + 1)]);
            let _ = Report::decode(&bytes);
        }

        #[test]
        fn a_report_survives_its_trailer(report in reports()) {
            let mut trailers = HeaderMap::new();

            report.put_on(&mut trailers);
            Report::default().put_on(&mut trailers);

            prop_assert_eq!(Report::of(&trailers).unwrap(), Some(report));
        }
    }

    #[test]
    fn what_is_no_report_is_refused_and_said() {
        let mut trailers = HeaderMap::new();
        assert_eq!(Report::of(&trailers).unwrap(), None);

        for (value, why) in [("§", "no base64"), ("CQ", "cut off")] {
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            trailers.insert(TRAILER, value);

            let error = Report::of(&trailers).unwrap_err();

            assert_eq!(error.kind(), ErrorKind::Decode);
            assert!(error.chain().contains(why), "{}", error.chain());
        }
    }
}
