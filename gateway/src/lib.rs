//! HTTP for clients; drives one request's quorum.
