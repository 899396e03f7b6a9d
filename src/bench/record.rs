//! What one connection measured, and the sum over all of them.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use http::StatusCode;

use super::link::{Answer, Broken};
use super::plan::Timing;
use crate::client::Failure;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// Measurements of the measured time.
#[derive(Debug)]
pub(crate) struct Record {
    /// Latencies of reads, in microseconds.
    pub(crate) reads: Histogram<u64>,
    /// Latencies of writes, in microseconds.
    pub(crate) writes: Histogram<u64>,
    /// How late operations were sent, in microseconds.
    pub(crate) lateness: Histogram<u64>,
    /// Answers by status, reads and writes together.
    pub(crate) statuses: BTreeMap<u16, u64>,
    /// Operations that got no answer, by reason.
    pub(crate) broken: BTreeMap<Broken, u64>,
    /// Reads answered as meant.
    pub(crate) reads_ok: u64,
    /// Writes answered as meant.
    pub(crate) writes_ok: u64,
    /// Answers with any other status.
    pub(crate) refused: u64,
    /// Bytes of values sent.
    pub(crate) sent_bytes: u64,
    /// Bytes of bodies received.
    pub(crate) received_bytes: u64,
}

impl Record {
    /// An empty record.
    ///
    /// # Errors
    /// Only if the histogram's fixed precision were out of its range.
    pub(crate) fn new() -> Result<Record, Failure> {
        // Three digits; grows with the values seen, so that thousands of connections stay small.
        let histogram =
            || Histogram::<u64>::new(3).map_err(|error| Failure::failed(format!("can't measure: {error}")));
        Ok(Record {
            reads: histogram()?,
            writes: histogram()?,
            lateness: histogram()?,
            statuses: BTreeMap::new(),
            broken: BTreeMap::new(),
            reads_ok: 0,
            writes_ok: 0,
            refused: 0,
            sent_bytes: 0,
            received_bytes: 0,
        })
    }

    /// Adds one operation.
    pub(crate) fn add(&mut self, kind: Kind, timing: &Timing, sent: u64, result: &Result<Answer, Broken>) {
        record(&mut self.lateness, timing.lateness_micros());
        self.sent_bytes += sent;
        let latencies = match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
        };
        match result {
            Ok(answer) => {
                *self.statuses.entry(answer.status.as_u16()).or_default() += 1;
                self.received_bytes += answer.bytes;
                if !as_meant(kind, answer.status) {
                    self.refused += 1;
                    return;
                }
                record(latencies, timing.latency_micros());
                match kind {
                    Kind::Read => self.reads_ok += 1,
                    Kind::Write => self.writes_ok += 1,
                }
            }
            Err(broken) => {
                // The client waited that long in vain: leaving it out would flatter the tail.
                record(latencies, timing.latency_micros());
                *self.broken.entry(*broken).or_default() += 1;
            }
        }
    }

    /// Adds another connection's record to this one.
    pub(crate) fn merge(&mut self, other: &Record) {
        // Adding can fail only for a histogram of a fixed size, and these grow.
        let _ = self.reads.add(&other.reads);
        let _ = self.writes.add(&other.writes);
        let _ = self.lateness.add(&other.lateness);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (broken, count) in &other.broken {
            *self.broken.entry(*broken).or_default() += count;
        }
        self.reads_ok += other.reads_ok;
        self.writes_ok += other.writes_ok;
        self.refused += other.refused;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
    }

    /// Operations answered as meant.
    pub(crate) fn succeeded(&self) -> u64 {
        self.reads_ok + self.writes_ok
    }
}

/// Adds one value. `record` grows the histogram where `saturating_record` would cut the value off; it can fail
/// only for values beyond 64 bits of buckets, which no clock reaches.
fn record(histogram: &mut Histogram<u64>, micros: u64) {
    let _ = histogram.record(micros);
}

/// Whether a status is what the operation hoped for. A key that was never written is an answer too.
fn as_meant(kind: Kind, status: StatusCode) -> bool {
    match kind {
        Kind::Read => {
            status.is_success() || status == StatusCode::MULTIPLE_CHOICES || status == StatusCode::NOT_FOUND
        }
        Kind::Write => status.is_success(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn timing(latency: u64) -> Timing {
        let sent = Duration::from_micros(50);
        Timing { intended: Duration::ZERO, sent, done: Duration::from_micros(latency) }
    }

    fn answer(status: u16) -> Result<Answer, Broken> {
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), clock: None, bytes: 10 })
    }

    #[test]
    fn refusals_are_counted_and_waits_in_vain_are_measured() {
        let mut record = Record::new().unwrap();
        record.add(Kind::Read, &timing(100), 0, &answer(200));
        record.add(Kind::Read, &timing(100), 0, &answer(404));
        record.add(Kind::Read, &timing(100), 0, &answer(503));
        record.add(Kind::Write, &timing(200), 5, &answer(204));
        record.add(Kind::Write, &timing(200), 5, &answer(404));
        record.add(Kind::Write, &timing(9_000), 5, &Err(Broken::Timeout));
        let mut sum = Record::new().unwrap();
        sum.merge(&record);
        sum.merge(&record);
        assert_eq!((sum.reads_ok, sum.writes_ok, sum.refused), (4, 2, 4));
        assert_eq!((sum.reads.len(), sum.writes.len(), sum.lateness.len()), (4, 4, 12));
        assert_eq!(sum.broken, BTreeMap::from([(Broken::Timeout, 2)]));
        assert!(sum.writes.max() >= 9_000);
        assert_eq!(sum.statuses, BTreeMap::from([(200, 2), (204, 2), (404, 4), (503, 2)]));
        assert_eq!((sum.sent_bytes, sum.received_bytes), (30, 100));
    }
}
