//! The one place that writes to standard output and standard error.
//!
//! Results go to standard output, remarks to standard error. A reader that goes away (`| head`) ends the
//! command quietly. Tests collect both streams in memory.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde_json::Value;

use super::exit::Failure;

/// How a command prints its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people and pipes.
    Text,
    /// One JSON document, for programs.
    Json,
}

/// Where results and remarks go.
#[derive(Debug)]
pub enum Output {
    /// The process's own standard output and standard error.
    Process,
    /// Memory, for tests.
    Memory {
        /// What would have gone to standard output.
        out: Vec<u8>,
        /// What would have gone to standard error.
        err: Vec<u8>,
    },
}

impl Output {
    /// An output that only remembers.
    pub fn memory() -> Output {
        Output::Memory { out: Vec::new(), err: Vec::new() }
    }

    /// Writes bytes to standard output and flushes them.
    ///
    /// # Errors
    /// [`Failure::closed_pipe`] when the reader has gone; exit status 1 for any other error (a full disk).
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match self {
            Output::Process => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush())
            }
            Output::Memory { out, .. } => out.write_all(bytes),
        };
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::closed_pipe(),
            _ => Failure::failed(format!("can't write to standard output: {error}")),
        })
    }

    /// Writes one line to standard output.
    ///
    /// # Errors
    /// As [`Output::raw`].
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.raw(format!("{text}\n").as_bytes())
    }

    /// Writes one JSON document, indented, to standard output.
    ///
    /// # Errors
    /// As [`Output::raw`].
    pub fn json(&mut self, value: &Value) -> Result<(), Failure> {
        self.line(&format!("{value:#}"))
    }

    /// Writes a remark to standard error. Nobody may be reading it, so errors are dropped.
    pub fn note(&mut self, text: &str) {
        let line = format!("{text}\n");
        let _ = match self {
            Output::Process => io::stderr().lock().write_all(line.as_bytes()),
            Output::Memory { err, .. } => err.write_all(line.as_bytes()),
        };
    }

    /// Does a person watch standard error?
    pub fn has_terminal(&self) -> bool {
        matches!(self, Output::Process) && io::stderr().is_terminal()
    }

    /// Can a person be asked?
    pub fn can_ask(&self) -> bool {
        self.has_terminal() && io::stdin().is_terminal()
    }

    /// Asks a person on the terminal; anything but `y` or `yes` is a no.
    pub fn ask(&mut self, question: &str) -> bool {
        if !self.can_ask() {
            return false;
        }
        let _ = io::stderr().lock().write_all(format!("{question} [y/N] ").as_bytes());
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer);
        read.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")
    }

    /// Says how far long work is: in place of what was said before on a terminal, as a line elsewhere.
    pub fn progress(&mut self, text: &str) {
        if self.has_terminal() {
            // Back to the start of the line, and away with what is there.
            let _ = io::stderr().lock().write_all(format!("\r\x1b[K{text}").as_bytes());
        } else {
            self.note(text);
        }
    }

    /// Takes the last progress off a terminal.
    pub fn progress_ends(&mut self) {
        if self.has_terminal() {
            let _ = io::stderr().lock().write_all(b"\r\x1b[K");
        }
    }
}

/// How a table's column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Text: to the left.
    Left,
    /// Numbers: to the right.
    Right,
}

/// Lays out rows under a header in aligned columns, two spaces apart, without trailing blanks.
///
/// Rows shorter than the header are filled with empty cells; a cell's control characters are shown escaped,
/// so that a value from the network can't move the terminal's cursor.
pub fn table(header: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, (title, _))| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(title.chars().count())
        })
        .collect();
    let titles: Vec<String> = header.iter().map(|(title, _)| (*title).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&titles).chain(&rows) {
        let mut line = String::new();
        for (column, ((_, align), width)) in header.iter().zip(&widths).enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            let gap = if column == 0 { "" } else { "  " };
            match align {
                Align::Left => line.push_str(&format!("{gap}{cell:<width$}")),
                Align::Right => line.push_str(&format!("{gap}{cell:>width$}")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text with its control characters escaped (`\n`, `\u{1b}`), safe to show on a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped: Box<dyn Iterator<Item = char>> =
                if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) };
            escaped
        })
        .collect()
}

/// Standard base64 with padding, for bytes that are not UTF-8 text.
pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for position in 0..4 {
            // Each byte of the chunk fills one character more than its count; the rest is padding.
            if position <= chunk.len() {
                let index = (word >> (18 - 6 * position)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Puts bytes into a JSON object: under `name` if they are UTF-8 text, else under `name_base64`.
pub fn put_bytes(object: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object[name] = Value::from(text),
        Err(_) => object[format!("{name}_base64")] = Value::from(base64(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::base64::Engine;

    #[test]
    fn tables_line_up() {
        let text = table(
            &[("ID", Align::Left), ("KEYS", Align::Right), ("STATE", Align::Left)],
            &[
                vec!["node-a".into(), "7".into(), "active".into()],
                vec!["b".into(), "12345".into()],
                vec!["é\u{1b}".into(), "1".into(), "x".into()],
            ],
        );
        let expected = concat!(
            "ID        KEYS  STATE\n",
            "node-a       7  active\n",
            "b        12345\n",
            "é\\u{1b}      1  x\n"
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn base64_agrees_with_the_crate() {
        let bytes: Vec<u8> = (0..=255).collect();
        for end in 0..bytes.len() {
            let expected = ::base64::engine::general_purpose::STANDARD.encode(&bytes[..end]);
            assert_eq!(base64(&bytes[..end]), expected);
        }
    }

    #[test]
    fn bytes_are_text_where_they_can_be() {
        let mut object = serde_json::json!({});
        put_bytes(&mut object, "value", "schön".as_bytes());
        put_bytes(&mut object, "key", b"\xff\x00");
        assert_eq!(object, serde_json::json!({"value": "schön", "key_base64": "/wA="}));
    }
}
