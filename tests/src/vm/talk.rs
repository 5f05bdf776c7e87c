//! What host and guest say to each other, one JSON object a line.

use serde::{Deserialize, Serialize};

/// From the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run a program to its end. Answered by [`Reply::Line`]s and one [`Reply::Exit`].
    Run {
        /// Program and arguments.
        argv: Vec<String>,
        /// Its standard input.
        input: String,
    },
    /// Start a program that stays. Answered by [`Reply::Line`]s, and one [`Reply::Exit`] with code 0 as soon as a line
    /// begins with `until`; with the program's own code if it ends before.
    Start {
        /// Program and arguments.
        argv: Vec<String>,
        /// What the awaited line begins with.
        until: String,
    },
    /// Write a file, such as a setting below /proc/sys. Answered by [`Reply::Exit`].
    Write {
        /// Which.
        path: String,
        /// Its new content.
        text: String,
    },
}

/// From the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The guest waits for requests. Sent once.
    Ready {
        /// Release and version of its kernel, as `uname -r -v` prints them.
        kernel: String,
    },
    /// A line that a program wrote to its standard or error output.
    Line(String),
    /// A request is done. The code that a shell would see: 128 and the signal's number for a program that was killed.
    Exit(i32),
    /// A request could not be done; why.
    Failed(String),
}
