//! How a command ends: its exit status, and the one line that says why.

use std::process::ExitCode;

use serde_json::{Value, json};

/// The exit statuses that every command shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: it was done.
    Done,
    /// 1: the gateway refused it, or it failed.
    Failed,
    /// 2: the command line was wrong; nothing was sent.
    Usage,
    /// 3: no gateway answered.
    Unreachable,
    /// 4: the key has siblings, and the caller has to choose.
    Conflict,
    /// 5: another process has taken over this one's name; starting this one again would take the name back.
    TakenOver,
}

impl Exit {
    /// The number that the process ends with.
    pub fn number(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
            Exit::Conflict => 4,
            Exit::TakenOver => 5,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.number())
    }
}

/// Why a command did not do its work.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The exit status that it leads to.
    pub exit: Exit,
    /// One line for people; empty when there is nobody left to tell (a closed pipe).
    pub message: String,
    /// The gateway's problem document, if it sent one.
    pub problem: Option<Value>,
}

impl Failure {
    /// Refused or failed (exit status 1).
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Failed, message: message.into(), problem: None }
    }

    /// A wrong command line (exit status 2).
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Usage, message: message.into(), problem: None }
    }

    /// No gateway answered (exit status 3).
    pub fn unreachable(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::Unreachable, message: message.into(), problem: None }
    }

    /// Another process has taken over (exit status 5).
    pub fn taken_over(message: impl Into<String>) -> Failure {
        Failure { exit: Exit::TakenOver, message: message.into(), problem: None }
    }

    /// The reader of our output has gone away: end without a word, as `head` expects of its feeders.
    pub fn closed_pipe() -> Failure {
        Failure { exit: Exit::Done, message: String::new(), problem: None }
    }

    /// The failure as one JSON object: `{"error": {"message", "exit", "problem"?}}`.
    pub fn to_json(&self) -> Value {
        let mut error = json!({"message": self.message, "exit": self.exit.number()});
        if let Some(problem) = &self.problem {
            error["problem"] = problem.clone();
        }
        json!({ "error": error })
    }
}
