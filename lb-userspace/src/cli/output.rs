//! Standard output.

use std::io::{ErrorKind, Write};

use super::error::{CliError, io_words};

/// Where results go. A reader that has gone away (`ebb status | head`) is no error: the rest is not written.
pub struct Output {
    to: Box<dyn Write>,
    json: bool,
    closed: bool,
}

impl Output {
    /// The process's standard output.
    pub fn stdout(json: bool) -> Self {
        Self::new(json, Box::new(std::io::stdout()))
    }

    /// Any writer.
    pub fn new(json: bool, to: Box<dyn Write>) -> Self {
        Self {
            to,
            json,
            closed: false,
        }
    }

    /// Whether JSON is wanted.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether the reader has gone away.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Writes `text` and a line end, unless it has one.
    ///
    /// # Errors
    ///
    /// The output cannot be written for another reason than a reader that went away.
    pub fn print(&mut self, text: &str) -> Result<(), CliError> {
        if self.closed {
            return Ok(());
        }
        match self.write(text) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(CliError::failed(format!(
                "cannot write the output: {}",
                io_words(&error)
            ))
            .hint("look at where stdout goes; the command itself was carried out")),
        }
    }

    fn write(&mut self, text: &str) -> std::io::Result<()> {
        self.to.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            self.to.write_all(b"\n")?;
        }
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let mut output = Output::new(false, Box::new(Broken(ErrorKind::BrokenPipe)));
        assert!(output.print("x").is_ok());
        assert!(output.closed());
        assert!(output.print("y").is_ok());
    }

    #[test]
    fn a_full_disk_is_one() {
        let mut output = Output::new(false, Box::new(Broken(ErrorKind::StorageFull)));
        let error = output.print("x").expect_err("refused");
        assert_eq!(error.error, "cannot write the output: no storage space");
    }
}
