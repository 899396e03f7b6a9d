//! A client's connections to the gateways.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use crate::cluster::{GATEWAYS, PORT, Presence};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers but `Date`.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// A header, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A number of the `Quorum` header.
    pub fn quorum(&self, field: &str) -> Option<usize> {
        let mut fields = self.header("quorum").split(", ").filter_map(|field| field.split_once('='));
        fields.find(|(name, _)| *name == field).and_then(|(_, value)| value.parse().ok())
    }

    /// Did the bucket stand in?
    pub fn is_degraded(&self) -> bool {
        self.headers.contains_key("cartwheel-degraded")
    }

    /// What is wrong with what it says of its quorum, if anything is; `operation` was asked for.
    pub fn implausible(&self, operation: &str) -> Option<String> {
        let wrong = |what: &str| Some(format!("{what}: {:?}", self.headers));
        if !self.header("quorum").starts_with(&format!("op={operation}, ")) {
            return wrong("no quorum of this operation");
        }
        let fields = ["n", "required", "answered", "home", "fallback"].map(|field| self.quorum(field));
        let [Some(n), Some(required), Some(answered), Some(home), Some(fallback)] = fields else {
            return wrong("no numbers");
        };
        if answered != home + fallback || answered > n {
            return wrong("the numbers do not fit together");
        }
        let met = answered >= required && (operation == "write" || home > 0);
        if !met && !self.is_degraded() {
            return wrong("too few answered, and it is not degraded");
        }
        // While the ring changes, a quorum of the homes of one ring is not enough for a write.
        if met && self.is_degraded() && operation == "read" {
            return wrong("degraded though enough answered");
        }
        None
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The gateway was not there, or went away meanwhile.
    Gone,
    /// The connection broke for no reason.
    Broke(String),
    /// None by the deadline.
    Late,
}

/// The connections of one client.
pub struct Http {
    presence: Arc<Presence>,
    connections: [Option<(u64, SendRequest<Full<Bytes>>)>; 2],
}

impl Http {
    /// No connection yet.
    pub fn new(presence: Arc<Presence>) -> Self {
        Self { presence, connections: [None, None] }
    }

    /// Sends a request to a gateway and waits for the answer until `deadline`.
    pub async fn send(
        &mut self,
        gateway: usize,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
        deadline: Instant,
    ) -> Result<Answer, NoAnswer> {
        let Some(life) = self.presence.life(gateway) else { return Err(NoAnswer::Gone) };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, GATEWAYS[gateway]);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let outcome = tokio::time::timeout_at(deadline, self.exchange(gateway, life, request)).await;
        let failed = match outcome {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => NoAnswer::Broke(error),
            Err(_) => NoAnswer::Late,
        };
        self.connections[gateway] = None;
        Err(if self.presence.life(gateway) == Some(life) { failed } else { NoAnswer::Gone })
    }

    async fn connect(&mut self, gateway: usize, life: u64) -> Result<&mut SendRequest<Full<Bytes>>, String> {
        let open = |(of, sender): &(u64, SendRequest<Full<Bytes>>)| *of == life && !sender.is_closed();
        if !self.connections[gateway].as_ref().is_some_and(open) {
            let address = (GATEWAYS[gateway], PORT);
            let stream = turmoil::net::TcpStream::connect(address).await.map_err(|e| e.to_string())?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            self.connections[gateway] = Some((life, sender));
        }
        let connection = self.connections[gateway].as_mut().map(|(_, sender)| sender);
        connection.ok_or_else(|| "no connection".to_owned())
    }

    async fn exchange(
        &mut self,
        gateway: usize,
        life: u64,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, String> {
        let sender = self.connect(gateway, life).await?;
        sender.ready().await.map_err(|e| e.to_string())?;
        let (parts, body) = sender.send_request(request).await.map_err(|e| e.to_string())?.into_parts();
        let body = body.collect().await.map_err(|e| e.to_string())?.to_bytes();
        let mut headers = BTreeMap::new();
        for (name, value) in &parts.headers {
            // hyper reads the real clock for it.
            if name != header::DATE {
                headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
            }
        }
        Ok(Answer { status: parts.status, headers, body })
    }
}
