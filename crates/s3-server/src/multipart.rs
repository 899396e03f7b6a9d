//! Uploads in parts. The parts wait in files until the upload is completed.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use s3s::dto::{CompletedMultipartUpload, PartNumber};
use s3s::{S3Result, s3_error};

use crate::service::blocking;
use crate::store::{Condition, Meta, Store, StoreError};

/// The most parts of one upload, as in S3.
const PART_LIMIT: u32 = 10_000;
/// The file that says what an upload is for.
const TARGET: &str = "target";

/// One upload, as a request names it.
#[derive(Debug)]
pub(crate) struct Upload {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) id: String,
}

fn target(bucket: &str, key: &str) -> String {
    format!("{bucket}/{key}")
}

/// Begins an upload and answers its id.
pub(crate) fn begin(store: &Store, bucket: &str, key: &str) -> Result<String, StoreError> {
    store.bucket(bucket)?;
    if key.len() > crate::names::KEY_LIMIT {
        return Err(StoreError::KeyTooLong);
    }
    let id = format!("{:016x}{:016x}", store.unique(), store.unique());
    let directory =
        store.upload_path(&id).ok_or_else(|| io::Error::other("an upload id of the wrong form"))?;
    fs::create_dir(&directory)?;
    fs::write(directory.join(TARGET), target(bucket, key))?;
    if store.syncs() {
        File::open(directory.join(TARGET))?.sync_all()?;
    }
    store.sync_directory(&directory)?;
    Ok(id)
}

/// Checks a part's number.
pub(crate) fn check_number(number: PartNumber) -> S3Result<u32> {
    match u32::try_from(number) {
        Ok(number @ 1..=PART_LIMIT) => Ok(number),
        _ => Err(s3_error!(InvalidArgument, "a part number is 1 to {PART_LIMIT}")),
    }
}

/// The file of a part.
pub(crate) fn part_name(number: u32) -> String {
    format!("part-{number:05}")
}

/// Number and ETag of each part that the client wants, ascending.
pub(crate) fn check_parts(upload: Option<CompletedMultipartUpload>) -> S3Result<Vec<(u32, String)>> {
    let mut parts = Vec::new();
    for part in upload.and_then(|upload| upload.parts).unwrap_or_default() {
        let number = check_number(part.part_number.unwrap_or(0))?;
        if parts.last().is_some_and(|(last, _)| *last >= number) {
            return Err(s3_error!(InvalidPartOrder, "the parts must be in ascending order"));
        }
        let tag = part.e_tag.ok_or_else(|| s3_error!(InvalidPart, "part {number} has no ETag"))?;
        parts.push((number, tag.into_value()));
    }
    if parts.is_empty() {
        return Err(s3_error!(MalformedXML, "an upload has at least one part"));
    }
    Ok(parts)
}

/// Runs file work in the directory of an upload that exists and is for this key.
pub(crate) async fn blocking_known<T, F>(store: &Arc<Store>, upload: Upload, work: F) -> S3Result<T>
where
    T: Send + 'static,
    F: FnOnce(&Store, &Path) -> Result<T, StoreError> + Send + 'static,
{
    let done = blocking(store, move |store| {
        store.bucket(&upload.bucket)?;
        let Some(directory) = store.upload_path(&upload.id) else { return Ok(None) };
        match fs::read_to_string(directory.join(TARGET)) {
            Ok(text) if text == target(&upload.bucket, &upload.key) => work(store, &directory).map(Some),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    done.await?.ok_or_else(|| s3_error!(NoSuchUpload, "the upload does not exist"))
}

/// Joins the parts to the object and forgets the upload.
pub(crate) async fn complete(
    store: &Arc<Store>,
    upload: Upload,
    parts: Vec<(u32, String)>,
    condition: Condition,
) -> S3Result<Meta> {
    let (bucket, key) = (upload.bucket.clone(), upload.key.clone());
    let done = blocking_known(store, upload, move |store, directory| {
        let mut temp = store.temp()?;
        for (number, tag) in parts {
            let path = directory.join(part_name(number));
            if !Store::file_meta(&path).is_ok_and(|meta| meta.tag == tag) {
                return Ok(None);
            }
            io::copy(&mut File::open(&path)?, &mut temp.file)?;
        }
        store.finish(&temp)?;
        let meta = store.publish(&bucket, &key, temp, &condition)?;
        // The object is there; parts that stay behind only take room.
        if let Err(error) = fs::remove_dir_all(directory) {
            tracing::warn!(%error, "parts of a completed upload were left behind");
        }
        Ok(Some(meta))
    });
    done.await?.ok_or_else(|| s3_error!(InvalidPart, "a part is missing or has another ETag"))
}
