//! What a store charges, and what was asked of it costs.

use std::fmt;
use std::str::FromStr;

use crate::metered::{Usage, WorkUsage};

/// Requests that the prices of requests are for.
const REQUESTS: f64 = 1_000.0;
/// Bytes of the gigabyte that stores charge for.
const GB: f64 = 1_073_741_824.0;
/// The highest price that is believed, in dollars.
const HIGHEST: f64 = 1_000_000.0;

/// A store's price list, in dollars. The default is that of S3 Standard in us-east-1, read from inside the region.
///
/// Written as `put=0.005,get=0.0004,gb-month=0.023,gb-out=0`; a field that is left out keeps its default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prices {
    /// Per 1,000 requests that write or list: put, create, list. Deletes are free.
    pub put: f64,
    /// Per 1,000 requests that read: get and get of a range.
    pub get: f64,
    /// Per month and GB (2^30 bytes) that lies in the store.
    pub gb_month: f64,
    /// Per GB (2^30 bytes) read out of the store.
    pub gb_out: f64,
}

/// Why a price list was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PricesError {
    /// Not `FIELD=DOLLARS`.
    #[error("'{0}' is not a price: write FIELD=DOLLARS, such as put=0.005")]
    NotAField(String),
    /// No such field.
    #[error("there is no price '{0}': the prices are put, get, gb-month, gb-out")]
    Unknown(String),
    /// A field that stands there already.
    #[error("the price '{0}' is given more than once")]
    Repeated(&'static str),
    /// Not a number within the limits.
    #[error("the price '{field}' is '{given}': it must be a number of dollars from 0 to {HIGHEST}")]
    NotDollars {
        /// The field.
        field: &'static str,
        /// What was written.
        given: String,
    },
}

impl Default for Prices {
    fn default() -> Self {
        Self { put: 0.005, get: 0.000_4, gb_month: 0.023, gb_out: 0.0 }
    }
}

impl Prices {
    /// Dollars for all that was asked so far. What lies in the store comes on top: [`Prices::per_month`].
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> f64 {
        usage.works.values().map(|work| self.cost_of(work)).sum()
    }

    /// Dollars for what one kind of work asked so far.
    #[must_use]
    pub fn cost_of(&self, work: &WorkUsage) -> f64 {
        let writes = (work.put + work.create + work.list) as f64;
        let reads = (work.get + work.get_range) as f64;
        (writes * self.put + reads * self.get) / REQUESTS + work.bytes_out as f64 / GB * self.gb_out
    }

    /// Dollars a month for so many bytes in the store.
    #[must_use]
    pub fn per_month(&self, bytes: u64) -> f64 {
        bytes as f64 / GB * self.gb_month
    }
}

/// As [`FromStr`] reads it, every field.
impl fmt::Display for Prices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { put, get, gb_month, gb_out } = self;
        write!(f, "put={put},get={get},gb-month={gb_month},gb-out={gb_out}")
    }
}

impl FromStr for Prices {
    type Err = PricesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut prices = Self::default();
        let mut fields = [
            ("put", &mut prices.put, false),
            ("get", &mut prices.get, false),
            ("gb-month", &mut prices.gb_month, false),
            ("gb-out", &mut prices.gb_out, false),
        ];
        for part in text.split(',') {
            let (name, given) =
                part.split_once('=').ok_or_else(|| PricesError::NotAField(part.to_owned()))?;
            let field = fields.iter_mut().find(|(field, ..)| *field == name);
            let (field, price, is_given) = field.ok_or_else(|| PricesError::Unknown(name.to_owned()))?;
            if std::mem::replace(is_given, true) {
                return Err(PricesError::Repeated(field));
            }
            // A NaN is in no range, and "-0" is no price either.
            let dollars = given
                .parse()
                .ok()
                .filter(|dollars: &f64| (0.0..=HIGHEST).contains(dollars) && dollars.is_sign_positive());
            **price = dollars.ok_or_else(|| PricesError::NotDollars { field, given: given.to_owned() })?;
        }
        Ok(prices)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Prices, PricesError};
    use crate::metered::{Usage, Work, WorkUsage};

    #[test]
    fn price_lists_are_read() {
        let given = |put, get, gb_month, gb_out| Prices { put, get, gb_month, gb_out };
        let table = [
            ("put=0.005,get=0.0004,gb-month=0.023,gb-out=0", Prices::default()),
            ("gb-out=0.09", Prices { gb_out: 0.09, ..Prices::default() }),
            ("gb-out=4,put=1,gb-month=3,get=2", given(1.0, 2.0, 3.0, 4.0)),
            ("put=0,get=0,gb-month=0,gb-out=0", given(0.0, 0.0, 0.0, 0.0)),
            ("put=1000000", Prices { put: 1_000_000.0, ..Prices::default() }),
        ];
        for (text, prices) in table {
            assert_eq!(text.parse(), Ok(prices), "{text}");
            assert_eq!(prices.to_string().parse(), Ok(prices), "{prices}");
        }
        assert_eq!(Prices::default().to_string(), "put=0.005,get=0.0004,gb-month=0.023,gb-out=0");
    }

    #[test]
    fn odd_price_lists_are_refused_by_the_field() {
        let table = [
            ("", "''"),
            ("put", "'put'"),
            ("put=1,", "''"),
            ("put=1, get=1", "' get'"),
            ("Put=1", "'Put'"),
            ("delete=1", "'delete'"),
            ("get=1,put=1,get=1", "'get' is given more than once"),
            ("put=-1", "'put' is '-1'"),
            ("gb-out=-0", "'gb-out' is '-0'"),
            ("gb-month=NaN", "'gb-month' is 'NaN'"),
            ("get=inf", "'get' is 'inf'"),
            ("get=", "'get' is ''"),
            ("put=$1", "from 0 to 1000000"),
            ("put=1000001", "'put' is '1000001'"),
        ];
        for (text, words) in table {
            let refused: PricesError = text.parse::<Prices>().unwrap_err();
            assert!(refused.to_string().contains(words), "{text}: {refused}");
        }
    }

    #[test]
    fn costs_are_sums_of_what_is_charged_for() {
        let prices: Prices = "put=5,get=0.5,gb-month=2,gb-out=8".parse().unwrap();
        let flush = WorkUsage { put: 100, create: 60, list: 40, delete: 999, ..WorkUsage::default() };
        let read = WorkUsage { get: 3_000, get_range: 1_000, bytes_out: 1 << 29, ..WorkUsage::default() };
        assert_eq!(prices.cost_of(&flush), 1.0);
        assert_eq!(prices.cost_of(&read), 2.0 + 4.0);
        let free = WorkUsage { delete: 7, failed: 7, bytes_in: 1 << 40, ..WorkUsage::default() };
        assert_eq!(prices.cost_of(&free), 0.0, "deletes and what is sent in are free");
        let works = [(Work::Flush, flush), (Work::Read, read), (Work::Sweep, free)].into();
        assert_eq!(prices.cost(&Usage { works }), 1.0 + 2.0 + 4.0);
        assert_eq!(prices.cost(&Usage::default()), 0.0);
        assert_eq!(prices.per_month(3 << 29), 3.0);
    }
}
