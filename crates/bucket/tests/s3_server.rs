//! The embedded S3 server as other clients use it, over HTTP with the AWS SDK.
//! (These tests are here because this crate has the SDK.)

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart, Delete, EncodingType, ObjectIdentifier,
};
use aws_smithy_http_client::Builder;
use cartwheel_s3_server::{RunningS3Server, S3Server, S3ServerConfig};

const BUCKET: &str = "files";

async fn serve(directory: &Path) -> (RunningS3Server, Client) {
    let config = S3ServerConfig {
        directory: directory.to_path_buf(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        credentials: Some(("access".into(), "secret".into())),
        sync: true,
    };
    let server = S3Server::start(config).await.unwrap();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(Builder::new().build_http())
        .credentials_provider(Credentials::new("access", "secret", None, None, "test"))
        .region(Region::new("us-east-1"))
        .endpoint_url(format!("http://{}", server.local_addr()))
        .force_path_style(true)
        .build();
    (server, Client::from_conf(config))
}

async fn with_bucket(directory: &Path) -> (RunningS3Server, Client) {
    let (server, client) = serve(directory).await;
    client.create_bucket().bucket(BUCKET).send().await.unwrap();
    (server, client)
}

async fn put(client: &Client, key: &str, body: &[u8]) -> String {
    let body = ByteStream::from(body.to_vec());
    client.put_object().bucket(BUCKET).key(key).body(body).send().await.unwrap().e_tag.unwrap()
}

async fn get(client: &Client, key: &str) -> Vec<u8> {
    let output = client.get_object().bucket(BUCKET).key(key).send().await.unwrap();
    output.body.collect().await.unwrap().into_bytes().to_vec()
}

fn status<T: std::fmt::Debug, E>(answer: Result<T, SdkError<E>>) -> u16 {
    match answer {
        Ok(output) => unreachable!("it must not succeed: {output:?}"),
        Err(error) => error.raw_response().unwrap().status().as_u16(),
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    put(&client, "ring/1.json", b"{}").await;
    let upload =
        client.create_multipart_upload().bucket(BUCKET).key("big").send().await.unwrap().upload_id.unwrap();
    let part = client.upload_part().bucket(BUCKET).key("big").upload_id(&upload).part_number(1);
    let tag = part.body(ByteStream::from_static(b"part")).send().await.unwrap().e_tag.unwrap();
    server.shutdown().await;

    let (server, client) = serve(directory.path()).await;
    assert_eq!(get(&client, "ring/1.json").await, b"{}");
    assert_eq!(std::fs::read(directory.path().join("buckets/files/ring/1.json%obj")).unwrap(), b"{}");
    let parts = CompletedMultipartUpload::builder()
        .parts(CompletedPart::builder().part_number(1).e_tag(tag).build())
        .build();
    let complete = client.complete_multipart_upload().bucket(BUCKET).key("big").upload_id(&upload);
    complete.multipart_upload(parts).send().await.unwrap();
    assert_eq!(get(&client, "big").await, b"part");
    let names: Vec<String> =
        client.list_buckets().send().await.unwrap().buckets().iter().filter_map(|b| b.name.clone()).collect();
    assert_eq!(names, [BUCKET]);
    server.shutdown().await;
}

#[tokio::test]
async fn ranges() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    put(&client, "k", b"0123456789").await;
    for (range, body, header) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-30", "0123456789", "bytes 0-9/10"),
        ("bytes=8-100", "89", "bytes 8-9/10"),
    ] {
        let output = client.get_object().bucket(BUCKET).key("k").range(range).send().await.unwrap();
        assert_eq!(output.content_range(), Some(header), "{range}");
        assert_eq!(output.body.collect().await.unwrap().into_bytes(), body.as_bytes(), "{range}");
    }
    for range in ["bytes=10-", "bytes=-0"] {
        assert_eq!(
            status(client.get_object().bucket(BUCKET).key("k").range(range).send().await),
            416,
            "{range}"
        );
    }
    let head = client.head_object().bucket(BUCKET).key("k").send().await.unwrap();
    assert_eq!(head.content_length(), Some(10));
    assert_eq!(status(client.head_object().bucket(BUCKET).key("none").send().await), 404);
    server.shutdown().await;
}

#[tokio::test]
async fn conditions() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    let first = put(&client, "k", b"1").await;
    let write = || client.put_object().bucket(BUCKET).key("k").body(ByteStream::from_static(b"2"));
    assert_eq!(status(write().if_none_match("*").send().await), 412);
    assert_eq!(status(write().if_match("\"other\"").send().await), 412);
    let second = write().if_match(&first).send().await.unwrap().e_tag.unwrap();
    assert_eq!(status(write().if_match(&first).send().await), 412);
    let read = || client.get_object().bucket(BUCKET).key("k");
    assert_eq!(status(read().if_match(&first).send().await), 412);
    assert_eq!(status(read().if_none_match(&second).send().await), 304);
    assert!(read().if_match(&second).send().await.is_ok());
    server.shutdown().await;
}

#[tokio::test]
async fn listings_with_delimiter_tokens_and_encoding() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    for key in ["a/1", "a/2", "b", "c d/1", "c/1", "e"] {
        put(&client, key, b"x").await;
    }
    let (mut shown, mut token) = (Vec::new(), None);
    loop {
        let page = client.list_objects_v2().bucket(BUCKET).delimiter("/").max_keys(1);
        let page = page.set_continuation_token(token).send().await.unwrap();
        assert_eq!(page.key_count(), Some(1));
        shown.extend(page.common_prefixes().iter().filter_map(|prefix| prefix.prefix.clone()));
        shown.extend(page.contents().iter().filter_map(|object| object.key.clone()));
        token = page.next_continuation_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(shown, ["a/", "b", "c d/", "c/", "e"]);

    let page = client.list_objects().bucket(BUCKET).delimiter("/").marker("a/").max_keys(2);
    let page = page.encoding_type(EncodingType::Url).send().await.unwrap();
    let prefixes: Vec<_> =
        page.common_prefixes().iter().filter_map(|prefix| prefix.prefix.as_deref()).collect();
    assert_eq!((prefixes, page.next_marker()), (vec!["c%20d/"], Some("c%20d/")));
    assert_eq!(page.is_truncated(), Some(true));

    let bad = client.list_objects_v2().bucket(BUCKET).continuation_token("nonsense").send().await;
    assert_eq!(status(bad), 400);
    let none = client.list_objects_v2().bucket(BUCKET).max_keys(0).send().await.unwrap();
    assert_eq!((none.contents().len(), none.is_truncated()), (0, Some(false)));
    server.shutdown().await;
}

#[tokio::test]
async fn checksums_of_every_kind_are_accepted_and_wrong_ones_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    for algorithm in ChecksumAlgorithm::values() {
        let algorithm = ChecksumAlgorithm::from(*algorithm);
        let known = ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"];
        if known.contains(&algorithm.as_str()) {
            let write = client
                .put_object()
                .bucket(BUCKET)
                .key(algorithm.as_str())
                .checksum_algorithm(algorithm.clone());
            write.body(ByteStream::from_static(b"body")).send().await.unwrap();
            assert_eq!(get(&client, algorithm.as_str()).await, b"body");
        }
    }
    let write = || client.put_object().bucket(BUCKET).key("wrong").body(ByteStream::from_static(b"body"));
    for answer in [
        write().checksum_sha256("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=").send().await,
        write().checksum_crc32("AAAAAA==").send().await,
        write().content_md5("1B2M2Y8AsgTpgAmY7PhCfg==").send().await,
    ] {
        assert_eq!(answer.unwrap_err().code(), Some("BadDigest"));
    }
    assert_eq!(status(client.get_object().bucket(BUCKET).key("wrong").send().await), 404);
    write().content_md5("hBotaJrYa9FhFEdFPCLG/A==").send().await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn multipart_uploads() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    let upload =
        client.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap().upload_id.unwrap();
    let mut parts = Vec::new();
    for (number, body) in [(2, b"two".as_slice()), (10, b"ten"), (1, b"one")] {
        let part = client.upload_part().bucket(BUCKET).key("k").upload_id(&upload).part_number(number);
        let tag = part.body(ByteStream::from(body.to_vec())).send().await.unwrap().e_tag.unwrap();
        parts.push(CompletedPart::builder().part_number(number).e_tag(tag).build());
    }
    let complete = |parts: Vec<CompletedPart>| {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key("k")
            .upload_id(&upload)
            .multipart_upload(parts)
            .send()
    };
    assert_eq!(complete(parts.clone()).await.unwrap_err().code(), Some("InvalidPartOrder"));
    parts.sort_by_key(|part| part.part_number);
    let mut wrong = parts.clone();
    wrong[0].e_tag = Some("other".into());
    assert_eq!(complete(wrong).await.unwrap_err().code(), Some("InvalidPart"));
    assert_eq!(status(client.get_object().bucket(BUCKET).key("k").send().await), 404);
    complete(parts.clone()).await.unwrap();
    assert_eq!(get(&client, "k").await, b"onetwoten");
    assert_eq!(complete(parts).await.unwrap_err().code(), Some("NoSuchUpload"));

    let upload =
        client.create_multipart_upload().bucket(BUCKET).key("k").send().await.unwrap().upload_id.unwrap();
    let other = client.upload_part().bucket(BUCKET).key("other").upload_id(&upload).part_number(1);
    assert_eq!(
        status(other.body(ByteStream::from_static(b"x")).send().await),
        404,
        "an upload is for one key"
    );
    client.abort_multipart_upload().bucket(BUCKET).key("k").upload_id(&upload).send().await.unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("uploads")).unwrap().count(), 0);
    let escape = client.abort_multipart_upload().bucket(BUCKET).key("k").upload_id("../buckets").send().await;
    assert_eq!(escape.unwrap_err().code(), Some("NoSuchUpload"));
    server.shutdown().await;
}

#[tokio::test]
async fn copies_bulk_deletes_and_buckets() {
    let directory = tempfile::tempdir().unwrap();
    let (server, client) = with_bucket(directory.path()).await;
    put(&client, "a/b", b"body").await;
    client.copy_object().bucket(BUCKET).key("c").copy_source("files/a/b").send().await.unwrap();
    assert_eq!(get(&client, "c").await, b"body");
    assert_eq!(
        client.create_bucket().bucket(BUCKET).send().await.unwrap_err().code(),
        Some("BucketAlreadyOwnedByYou")
    );
    assert_eq!(
        client.delete_bucket().bucket(BUCKET).send().await.unwrap_err().code(),
        Some("BucketNotEmpty")
    );
    let object = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let delete = Delete::builder()
        .objects(object("a/b"))
        .objects(object("c"))
        .objects(object("none"))
        .build()
        .unwrap();
    let answer = client.delete_objects().bucket(BUCKET).delete(delete).send().await.unwrap();
    assert_eq!((answer.deleted().len(), answer.errors().len()), (3, 0));
    client.delete_bucket().bucket(BUCKET).send().await.unwrap();
    assert_eq!(status(client.head_bucket().bucket(BUCKET).send().await), 404);
    server.shutdown().await;
}
