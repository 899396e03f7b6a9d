//! Holds replicas: memory, log, segments, manifest.
