//! Listing: a walk over the directory in the order of the keys.

use std::fs;
use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::Path;

use crate::names::{self, Name};
use crate::store::{Meta, Store};

/// What to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query {
    pub(crate) prefix: String,
    pub(crate) delimiter: String,
    /// Start strictly after this.
    pub(crate) after: Option<String>,
    /// `after` is a common prefix, whose keys were listed by it.
    pub(crate) after_is_prefix: bool,
    pub(crate) limit: usize,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Object(String, Meta),
    Prefix(String),
}

/// One page, ascending.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) items: Vec<Item>,
    pub(crate) more: bool,
}

/// Lists a bucket's directory.
pub(crate) fn list(bucket: &Path, query: &Query) -> io::Result<Page> {
    let mut page = Page::default();
    if query.limit > 0 {
        // The walk's break only says that the page is full.
        let _ = walk(bucket, &[], query, &mut page)?;
    }
    Ok(page)
}

fn walk(directory: &Path, base: &[u8], query: &Query, page: &mut Page) -> io::Result<ControlFlow<()>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // It went away with its last object.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ControlFlow::Continue(())),
        Err(error) => return Err(error),
    };
    let mut children: Vec<(Name, std::ffi::OsString)> = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        if let Some(read) = name.to_str().and_then(names::read) {
            children.push((read, name));
        }
    }
    children.sort_by(|one, other| one.0.bytes().cmp(other.0.bytes()));
    for (name, file) in children {
        let path = directory.join(file);
        let full = [base, name.bytes()].concat();
        let flow = match name {
            Name::Directory(_) if may_hold(&full, query, page) => walk(&path, &full, query, page)?,
            Name::Directory(_) => ControlFlow::Continue(()),
            Name::Object(_) => visit(&path, full, query, page)?,
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Whether a key that starts with `base` could be on this page.
fn may_hold(base: &[u8], query: &Query, page: &Page) -> bool {
    let prefix = query.prefix.as_bytes();
    let within = base.starts_with(prefix) || prefix.starts_with(base);
    let passed = query.after.as_ref().is_some_and(|after| {
        let after = after.as_bytes();
        let inside = base.starts_with(after) && query.after_is_prefix;
        inside || (after > base && !after.starts_with(base))
    });
    let rolled_up =
        matches!(page.items.last(), Some(Item::Prefix(last)) if base.starts_with(last.as_bytes()));
    within && !passed && !rolled_up
}

fn visit(path: &Path, key: Vec<u8>, query: &Query, page: &mut Page) -> io::Result<ControlFlow<()>> {
    let go_on = Ok(ControlFlow::Continue(()));
    let Ok(key) = String::from_utf8(key) else { return go_on };
    let Some(rest) = key.strip_prefix(&query.prefix) else { return go_on };
    if let Some(after) = &query.after {
        let listed = query.after_is_prefix && key.starts_with(after);
        if key <= *after || listed {
            return go_on;
        }
    }
    let rolled = if query.delimiter.is_empty() { None } else { rest.find(&query.delimiter) };
    let item = if let Some(at) = rolled {
        let end = query.prefix.len() + at + query.delimiter.len();
        let common = Item::Prefix(key.get(..end).unwrap_or_default().to_owned());
        if page.items.last() == Some(&common) {
            return go_on;
        }
        common
    } else {
        match Store::file_meta(path) {
            Ok(meta) => Item::Object(key, meta),
            Err(error) if error.kind() == ErrorKind::NotFound => return go_on,
            Err(error) => return Err(error),
        }
    };
    if page.items.len() == query.limit {
        page.more = true;
        return Ok(ControlFlow::Break(()));
    }
    page.items.push(item);
    go_on
}
