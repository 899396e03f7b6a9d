//! The S3 operations, each a thin step over the store.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, CommonPrefix,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput,
    CopyObjectResult, CopySource, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition,
    EncodingType, Error, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput,
    ListBucketsOutput, ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, Object,
    PutObjectInput, PutObjectOutput, Timestamp, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3Request, S3Response, S3Result, s3_error};

use crate::body::{self, Claims};
use crate::list::{self, Item, Page, Query};
use crate::multipart;
use crate::store::{Condition, Meta, Store, StoreError};

/// The most keys of one page and of one bulk delete.
const PAGE_LIMIT: usize = 1000;

/// The store as an S3 service.
#[derive(Debug)]
pub(crate) struct Directory {
    store: Arc<Store>,
}

impl Directory {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn page(&self, bucket: &str, query: Query) -> S3Result<Page> {
        let bucket = bucket.to_owned();
        blocking(&self.store, move |store| Ok(list::list(&store.bucket(&bucket)?, &query)?)).await
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T, F>(store: &Arc<Store>, work: F) -> S3Result<T>
where
    T: Send + 'static,
    F: FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
{
    let store = Arc::clone(store);
    match tokio::task::spawn_blocking(move || work(&store)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(s3_error!(InternalError, "the request was cut short")),
    }
}

pub(crate) fn tag(meta: &Meta) -> ETag {
    ETag::Strong(meta.tag.clone())
}

/// A length for a header.
fn signed(length: u64) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// The condition of a write, from its headers.
pub(crate) fn condition(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<Condition> {
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::None),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Absent),
        (Some(ETagCondition::Any), None) => Ok(Condition::Present),
        (Some(ETagCondition::ETag(tag)), None) => Ok(Condition::Tag(tag.value().to_owned())),
        _ => Err(s3_error!(NotImplemented, "a write takes If-None-Match: * or one If-Match")),
    }
}

/// Whether a read's headers let it go on.
fn check_read(
    meta: &Meta,
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<()> {
    let same = |condition: &ETagCondition| condition.as_etag().is_none_or(|tag| tag.value() == meta.tag);
    if if_match.is_some_and(|condition| !same(condition)) {
        return Err(s3_error!(PreconditionFailed, "the object has another ETag"));
    }
    if if_none_match.is_some_and(same) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// What part of an object a read wants: start, length, and the range header of the answer.
fn part(meta: &Meta, range: Option<&s3s::dto::Range>) -> S3Result<(u64, u64, Option<String>)> {
    let Some(range) = range else { return Ok((0, meta.size, None)) };
    let range =
        range.check(meta.size).map_err(|_| s3_error!(InvalidRange, "the range is past the object's end"))?;
    if range.is_empty() {
        return Err(s3_error!(InvalidRange, "the range is empty"));
    }
    let header = format!("bytes {}-{}/{}", range.start, range.end - 1, meta.size);
    Ok((range.start, range.end - range.start, Some(header)))
}

#[async_trait]
impl S3 for Directory {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        let location = Some(format!("/{bucket}"));
        match blocking(&self.store, move |store| store.create_bucket(&bucket)).await {
            Ok(true) => Ok(S3Response::new(CreateBucketOutput { location })),
            Ok(false) => Err(s3_error!(BucketAlreadyOwnedByYou, "the bucket exists")),
            Err(error) if *error.code() == s3s::S3ErrorCode::NoSuchBucket => Err(s3_error!(
                InvalidBucketName,
                "a bucket name is 3 to 63 characters of a-z, 0-9, '-' and '.'"
            )),
            Err(error) => Err(error),
        }
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        blocking(&self.store, move |store| store.bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        blocking(&self.store, move |store| store.bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn delete_bucket(
        &self,
        req: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        blocking(&self.store, move |store| store.delete_bucket(&req.input.bucket)).await?;
        Ok(S3Response::new(DeleteBucketOutput {}))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let found = blocking(&self.store, Store::buckets).await?;
        let buckets = found.into_iter().map(|(name, created)| Bucket {
            name: Some(name),
            creation_date: Some(created.into()),
            ..Bucket::default()
        });
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets.collect()),
            ..ListBucketsOutput::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let condition = condition(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let claims = Claims {
            length: input.content_length,
            md5: input.content_md5,
            crc32: input.checksum_crc32,
            crc32c: input.checksum_crc32c,
            crc64nvme: input.checksum_crc64nvme,
            sha1: input.checksum_sha1,
            sha256: input.checksum_sha256,
            trailer: input.checksum_algorithm.map(|name| name.as_str().to_owned()),
        };
        let temp = body::receive(&self.store, input.body, claims, req.trailing_headers).await?;
        let (bucket, key) = (input.bucket, input.key);
        let meta = blocking(&self.store, move |store| store.publish(&bucket, &key, temp, &condition)).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(tag(&meta)), ..PutObjectOutput::default() }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket: from_bucket, key: from_key, .. } = input.copy_source else {
            return Err(s3_error!(NotImplemented, "a copy's source is bucket/key"));
        };
        let (if_match, if_none_match) = (input.copy_source_if_match, input.copy_source_if_none_match);
        let (bucket, key) = (input.bucket, input.key);
        let store = Arc::clone(&self.store);
        let (mut file, source) =
            blocking(&store, move |store| store.open_object(&from_bucket, &from_key)).await?;
        check_read(&source, if_match.as_ref(), if_none_match.as_ref())?;
        let meta = blocking(&store, move |store| {
            let mut temp = store.temp()?;
            std::io::copy(&mut file, &mut temp.file)?;
            store.finish(&temp)?;
            store.publish(&bucket, &key, temp, &Condition::None)
        })
        .await?;
        let result = CopyObjectResult {
            e_tag: Some(tag(&meta)),
            last_modified: Some(meta.modified.into()),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let GetObjectInput { bucket, key, range, if_match, if_none_match, .. } = req.input;
        let (file, meta) = blocking(&self.store, move |store| store.open_object(&bucket, &key)).await?;
        check_read(&meta, if_match.as_ref(), if_none_match.as_ref())?;
        let (start, length, content_range) = part(&meta, range.as_ref())?;
        let body = body::send(&self.store, file, start, length).await?;
        Ok(S3Response::new(GetObjectOutput {
            body: Some(body),
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(signed(length)),
            content_range,
            content_type: Some("binary/octet-stream".to_owned()),
            e_tag: Some(tag(&meta)),
            last_modified: Some(meta.modified.into()),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let HeadObjectInput { bucket, key, range, if_match, if_none_match, .. } = req.input;
        let meta = blocking(&self.store, move |store| store.meta(&bucket, &key)).await?;
        check_read(&meta, if_match.as_ref(), if_none_match.as_ref())?;
        let (_, length, content_range) = part(&meta, range.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(signed(length)),
            content_range,
            content_type: Some("binary/octet-stream".to_owned()),
            e_tag: Some(tag(&meta)),
            last_modified: Some(meta.modified.into()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        blocking(&self.store, move |store| store.delete(&req.input.bucket, &req.input.key)).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let DeleteObjectsInput { bucket, delete, .. } = req.input;
        if delete.objects.len() > PAGE_LIMIT {
            return Err(s3_error!(MalformedXML, "a bulk delete is limited to 1000 keys"));
        }
        let quiet = delete.quiet.unwrap_or(false);
        let (deleted, errors) = blocking(&self.store, move |store| {
            store.bucket(&bucket)?;
            let (mut deleted, mut errors) = (Vec::new(), Vec::new());
            for object in delete.objects {
                let key = Some(object.key.clone());
                match store.delete(&bucket, &object.key) {
                    Ok(()) if quiet => {}
                    Ok(()) => deleted.push(DeletedObject { key, ..DeletedObject::default() }),
                    Err(error) => {
                        let error = S3Error::from(error);
                        errors.push(Error {
                            key,
                            code: Some(error.code().as_str().to_owned()),
                            message: error.message().map(str::to_owned),
                            ..Error::default()
                        });
                    }
                }
            }
            Ok((deleted, errors))
        })
        .await?;
        let filled = |errors: Vec<Error>| (!errors.is_empty()).then_some(errors);
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            errors: filled(errors),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let (after, after_is_prefix) = match &input.continuation_token {
            Some(token) => {
                read_token(token).ok_or_else(|| s3_error!(InvalidArgument, "unknown continuation token"))?
            }
            None => (input.start_after.clone(), false),
        };
        let limit = page_limit(input.max_keys)?;
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            delimiter: input.delimiter.clone().unwrap_or_default(),
            after,
            after_is_prefix,
            limit,
        };
        let page = self.page(&input.bucket, query).await?;
        let next = page.items.last().filter(|_| page.more).map(write_token);
        let url = is_url(input.encoding_type.as_ref());
        let count = page.items.len();
        let more = page.more;
        let (contents, prefixes) = split(page, url);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(encoded(input.prefix.unwrap_or_default(), url)),
            delimiter: input.delimiter.map(|text| encoded(text, url)),
            start_after: input.start_after.map(|text| encoded(text, url)),
            continuation_token: input.continuation_token,
            next_continuation_token: next,
            max_keys: i32::try_from(limit).ok(),
            key_count: i32::try_from(count).ok(),
            is_truncated: Some(more),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn list_objects(
        &self,
        req: S3Request<ListObjectsInput>,
    ) -> S3Result<S3Response<ListObjectsOutput>> {
        let input = req.input;
        let limit = page_limit(input.max_keys)?;
        let delimiter = input.delimiter.clone().unwrap_or_default();
        let marker = input.marker.clone().filter(|marker| !marker.is_empty());
        let query = Query {
            prefix: input.prefix.clone().unwrap_or_default(),
            // The marker of a page that ended in a common prefix is that prefix.
            after_is_prefix: !delimiter.is_empty()
                && marker.as_ref().is_some_and(|text| text.ends_with(&delimiter)),
            delimiter,
            after: marker,
            limit,
        };
        let page = self.page(&input.bucket, query).await?;
        let url = is_url(input.encoding_type.as_ref());
        let next = page.items.last().filter(|_| page.more).map(|item| match item {
            Item::Object(name, _) | Item::Prefix(name) => encoded(name.clone(), url),
        });
        let more = page.more;
        let (contents, prefixes) = split(page, url);
        Ok(S3Response::new(ListObjectsOutput {
            name: Some(input.bucket),
            prefix: Some(encoded(input.prefix.unwrap_or_default(), url)),
            delimiter: input.delimiter.map(|text| encoded(text, url)),
            marker: input.marker.map(|text| encoded(text, url)),
            next_marker: next,
            max_keys: i32::try_from(limit).ok(),
            is_truncated: Some(more),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            encoding_type: input.encoding_type,
            ..ListObjectsOutput::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, .. } = req.input;
        let target = (bucket.clone(), key.clone());
        let id = blocking(&self.store, move |store| multipart::begin(store, &target.0, &target.1)).await?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        let number = multipart::check_number(input.part_number)?;
        let upload = multipart::Upload { bucket: input.bucket, key: input.key, id: input.upload_id };
        let claims = Claims {
            length: input.content_length,
            md5: input.content_md5,
            crc32: input.checksum_crc32,
            crc32c: input.checksum_crc32c,
            crc64nvme: input.checksum_crc64nvme,
            sha1: input.checksum_sha1,
            sha256: input.checksum_sha256,
            trailer: input.checksum_algorithm.map(|name| name.as_str().to_owned()),
        };
        let temp = body::receive(&self.store, input.body, claims, req.trailing_headers).await?;
        let meta = multipart::blocking_known(&self.store, upload, move |store, directory| {
            Ok(store.keep(temp, &directory.join(multipart::part_name(number)))?)
        })
        .await?;
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(tag(&meta)), ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let condition = condition(input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let parts = multipart::check_parts(input.multipart_upload)?;
        let (bucket, key) = (input.bucket.clone(), input.key.clone());
        let upload = multipart::Upload { bucket: input.bucket, key: input.key, id: input.upload_id };
        let meta = multipart::complete(&self.store, upload, parts, condition).await?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            location: Some(format!("/{bucket}/{key}")),
            bucket: Some(bucket),
            key: Some(key),
            e_tag: Some(tag(&meta)),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let AbortMultipartUploadInput { bucket, key, upload_id: id, .. } = req.input;
        multipart::blocking_known(&self.store, multipart::Upload { bucket, key, id }, |_, directory| {
            Ok(std::fs::remove_dir_all(directory)?)
        })
        .await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

fn page_limit(asked: Option<i32>) -> S3Result<usize> {
    match asked.map(usize::try_from) {
        None => Ok(PAGE_LIMIT),
        Some(Ok(limit)) => Ok(limit.min(PAGE_LIMIT)),
        Some(Err(_)) => Err(s3_error!(InvalidArgument, "max-keys must not be negative")),
    }
}

fn is_url(encoding: Option<&EncodingType>) -> bool {
    encoding.is_some_and(|encoding| encoding.as_str() == EncodingType::URL)
}

/// Percent-encodes a name if the client asked for it, because XML can't carry every character.
fn encoded(name: String, url: bool) -> String {
    use std::fmt::Write;
    if !url {
        return name;
    }
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/*".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn split(page: Page, url: bool) -> (Vec<Object>, Vec<CommonPrefix>) {
    let (mut contents, mut prefixes) = (Vec::new(), Vec::new());
    for item in page.items {
        match item {
            Item::Prefix(name) => prefixes.push(CommonPrefix { prefix: Some(encoded(name, url)) }),
            Item::Object(name, meta) => contents.push(Object {
                key: Some(encoded(name, url)),
                size: Some(signed(meta.size)),
                last_modified: Some(stamp(meta.modified)),
                e_tag: Some(tag(&meta)),
                ..Object::default()
            }),
        }
    }
    (contents, prefixes)
}

fn stamp(at: SystemTime) -> Timestamp {
    at.into()
}

/// A token is what the page ended with: `k` or `p` and the name in hex digits.
fn write_token(item: &Item) -> String {
    let (kind, name) = match item {
        Item::Object(name, _) => ('k', name),
        Item::Prefix(name) => ('p', name),
    };
    let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}{hex}")
}

fn read_token(token: &str) -> Option<(Option<String>, bool)> {
    let is_prefix = match token.get(..1)? {
        "k" => false,
        "p" => true,
        _ => return None,
    };
    let hex = token.as_bytes().get(1..)?;
    let (pairs, []) = hex.as_chunks::<2>() else { return None };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
    Some((Some(String::from_utf8(bytes?).ok()?), is_prefix))
}

#[cfg(test)]
mod tests {
    use super::{Item, encoded, read_token, write_token};

    #[test]
    fn tokens_read_back_and_others_are_refused() {
        let token = write_token(&Item::Prefix("a/ä/".to_owned()));
        assert_eq!(read_token(&token), Some((Some("a/ä/".to_owned()), true)));
        for token in ["", "x00", "k0", "kzz", "kff", "ä"] {
            assert_eq!(read_token(token), None, "{token}");
        }
    }

    #[test]
    fn names_are_encoded_only_when_asked() {
        assert_eq!(encoded("a b/ä=1".to_owned(), true), "a%20b/%C3%A4%3D1");
        assert_eq!(encoded("a b".to_owned(), false), "a b");
    }
}
