//! Requests to the S3 server: paths, queries, headers and the XML of multipart uploads and deletions.

use cartwheel_s3_server::{S3Server, S3ServerConfig};

use crate::harness::{Fate, Run, Target};
use crate::running::{Answer, breaks_off, exchange, mend_length, panicked, runtime};

pub(crate) const NAMES: [&str; 1] = ["s3"];

pub(crate) fn targets(run: &Run) -> Vec<Target> {
    if run.wants(NAMES[0]) { vec![s3()] } else { Vec::new() }
}

fn request(head: &str, body: &str) -> String {
    format!("{head} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn s3() -> Target {
    let (runtime, directory) = (runtime(), tempfile::tempdir().unwrap());
    let config = S3ServerConfig {
        directory: directory.path().to_path_buf(),
        listen: "127.0.0.1:0".parse().unwrap(),
        credentials: None,
        sync: false,
    };
    let (server, upload) = runtime.block_on(async {
        let server = S3Server::start(config).await.unwrap();
        let address = server.local_addr().to_string();
        let send = async |text: String| exchange(&address, text.as_bytes()).await.unwrap();
        assert_eq!(send(request("PUT /carts", "")).await.status, 200);
        assert_eq!(send(request("PUT /carts/a/b.txt", "milk")).await.status, 200);
        let begun = send(request("POST /carts/long?uploads", "")).await;
        let text = String::from_utf8(begun.body).unwrap();
        let id = text.split("<UploadId>").nth(1).unwrap().split('<').next().unwrap().to_owned();
        assert_eq!(
            send(request(&format!("PUT /carts/long?partNumber=1&uploadId={id}"), "part")).await.status,
            200
        );
        (server, id)
    });
    let complete = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Part><ETag>\"x\"</ETag>\
        <PartNumber>1</PartNumber></Part></CompleteMultipartUpload>";
    let delete = "<Delete><Object><Key>a</Key></Object><Quiet>true</Quiet></Delete>";
    let get = |head: &str| format!("{head} HTTP/1.1\r\nHost: localhost\r\n");
    let corpus = vec![
        request("PUT /carts/key%2F%00", "value"),
        request("PUT /carts/new HTTP/1.1\r\nIf-None-Match: *\r\nx-amz-meta-a: b\r\nX-Y:", "value"),
        request(&format!("POST /carts/long?uploadId={upload}"), complete),
        request(&format!("PUT /carts/long?partNumber=2&uploadId={upload}"), "part"),
        request("POST /carts?delete", delete),
        request("POST /carts/other?uploads", ""),
        get("GET /carts?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=2&start-after=a&encoding-type=url")
            + "\r\n",
        get("GET /carts?list-type=2&continuation-token=YQ%3D%3D") + "\r\n",
        get("GET /carts?uploads&prefix=l") + "\r\n",
        get("GET /carts/a/b.txt") + "Range: bytes=1-2\r\n\r\n",
        get("HEAD /carts/a/b.txt")
            + "If-Match: \"x\"\r\nIf-Modified-Since: Mon, 23 Nov 2026 00:00:00 GMT\r\n\r\n",
        get("DELETE /carts/a") + "\r\n",
        get("GET /") + "\r\n",
    ];
    let corpus = corpus.into_iter().map(String::into_bytes).collect();
    Target::new("s3", corpus, move |input| {
        // Kept for as long as the server runs.
        let _ = &directory;
        runtime.block_on(async {
            let answer = exchange(&server.local_addr().to_string(), input).await;
            panicked()?;
            let fate = judge(input, &answer?)?;
            let alive = exchange(&server.local_addr().to_string(), get("GET /").as_bytes()).await;
            alive.map(|_| fate)
        })
    })
    .mended(mend_length)
    .costs(30)
}

/// What an S3 server may say: 501 is for what it does not do. The library under it says 500 to a client that hung up
/// within a body, and nobody reads that.
fn judge(request: &[u8], answer: &Answer) -> Result<Fate, String> {
    let shown = String::from_utf8_lossy(&answer.body);
    match answer.status {
        501 => {}
        500 if breaks_off(request) => {}
        500.. => return Err(format!("status {}: {shown}", answer.status)),
        _ => {}
    }
    let silent = answer.body.is_empty();
    if answer.status >= 400 && !silent && !shown.contains("<Code>") {
        return Err(format!("an error without a code: {answer:?}"));
    }
    Ok(Fate::Taken)
}
