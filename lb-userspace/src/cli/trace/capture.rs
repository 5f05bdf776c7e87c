//! Packets as a capture file: pcapng, with nanoseconds, interfaces by name, and what became of each packet as its
//! comment.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{ErrorKind, Write},
    time::{Duration, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use crate::{
    api::TracePacket,
    cli::error::{CliError, io_words},
};

use super::line;

/// `if_tsresol`: ten to the minus nine seconds.
const NANOSECONDS: u8 = 9;

/// Directions in `epb_flags`.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A capture file that is being written.
pub struct Capture<W: Write> {
    writer: PcapNgWriter<W>,
    /// Numbers of the interfaces that the file knows.
    interfaces: HashMap<String, u32>,
    snap: u32,
    /// Whoever read it has gone.
    is_closed: bool,
}

impl<W: Write> Capture<W> {
    /// Begins a file whose frames have `snap` bytes at most.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(to: W, snap: u32) -> Result<Self, CliError> {
        let mut capture = Self {
            writer: PcapNgWriter::new(to).map_err(failed)?,
            interfaces: HashMap::new(),
            snap,
            is_closed: false,
        };
        capture.flush()?;
        Ok(capture)
    }

    /// Adds what is there of a packet: as it came, and as it left.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, packet: &TracePacket) -> Result<(), CliError> {
        let came = humantime::parse_rfc3339(&packet.time)
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .unwrap_or_default();
        if let Some(frame) = &packet.frame_in {
            let length = packet.length;
            self.frame(packet, &packet.interface, came, length, frame, INBOUND)?;
        }
        if let (Some(frame), Some(exit), Some(length)) =
            (&packet.frame_out, &packet.exit, packet.length_out)
        {
            let left = came + Duration::from_nanos(packet.took_ns);
            self.frame(packet, exit, left, length, frame, OUTBOUND)?;
        }
        Ok(())
    }

    fn frame(
        &mut self,
        packet: &TracePacket,
        interface: &str,
        timestamp: Duration,
        original_len: u32,
        frame: &str,
        direction: u32,
    ) -> Result<(), CliError> {
        let data = STANDARD
            .decode(frame)
            .map_err(|error| CliError::failed(format!("a frame from the daemon: {error}")))?;
        let interface_id = self.interface(interface)?;
        let block = EnhancedPacketBlock {
            interface_id,
            timestamp,
            original_len,
            data: Cow::Owned(data),
            options: vec![
                EnhancedPacketOption::Comment(line::line(packet).into()),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        let written = self.writer.write_pcapng_block(block).map(drop);
        self.unless_closed(written)
    }

    /// The file's number of an interface.
    fn interface(&mut self, name: &str) -> Result<u32, CliError> {
        if let Some(number) = self.interfaces.get(name) {
            return Ok(*number);
        }
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap,
            options: vec![
                InterfaceDescriptionOption::IfName(name.to_owned().into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        let written = self.writer.write_pcapng_block(block).map(drop);
        self.unless_closed(written)?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(name.to_owned(), number);
        Ok(number)
    }

    /// Hands on what is written so far; false when nobody reads it any more.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> Result<bool, CliError> {
        let flushed = self.writer.get_mut().flush().map_err(PcapError::IoError);
        self.unless_closed(flushed)?;
        Ok(!self.is_closed)
    }

    fn unless_closed(&mut self, result: Result<(), PcapError>) -> Result<(), CliError> {
        match result {
            Err(PcapError::IoError(error)) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            result => result.map_err(failed),
        }
    }
}

fn failed(error: PcapError) -> CliError {
    let why = match &error {
        PcapError::IoError(error) => io_words(error),
        other => other.to_string(),
    };
    CliError::failed(format!("cannot write the capture: {why}"))
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::{super::line::tests::packet, *};

    #[test]
    fn frames_are_read_back_with_their_times_interfaces_and_comments() {
        let mut sent = packet();
        sent.frame_in = Some(STANDARD.encode(b"as it came"));
        sent.frame_out = Some(STANDARD.encode(b"as it left"));
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, 96).expect("a capture");
        capture.add(&sent).expect("written");
        capture.add(&sent).expect("written");
        drop(capture);

        let mut reader = PcapNgReader::new(&file[..]).expect("a pcapng file");
        let (mut frames, mut names) = (Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.expect("a sound block") {
                Block::EnhancedPacket(block) => frames.push(block.into_owned()),
                Block::InterfaceDescription(block) => {
                    assert_eq!((block.linktype, block.snaplen), (DataLink::ETHERNET, 96));
                    assert!(
                        block
                            .options
                            .contains(&InterfaceDescriptionOption::IfTsResol(9))
                    );
                    names.push(block.options[0].clone().into_owned());
                }
                other => panic!("{other:?}"),
            }
        }
        let name = |name: &'static str| InterfaceDescriptionOption::IfName(name.into());
        assert_eq!(names, [name("eth0"), name("eth1")]);
        assert_eq!(frames.len(), 4);
        let came = humantime::parse_rfc3339(&sent.time).expect("a time");
        let came = came.duration_since(UNIX_EPOCH).expect("after 1970");
        assert_eq!(frames[0].timestamp, came);
        assert_eq!(frames[1].timestamp, came + Duration::from_nanos(900));
        assert_eq!((frames[0].interface_id, frames[1].interface_id), (0, 1));
        assert_eq!(
            (&*frames[0].data, &*frames[1].data),
            (&b"as it came"[..], &b"as it left"[..])
        );
        assert_eq!(frames[0].original_len, 74);
        let comment = EnhancedPacketOption::Comment(line::line(&sent).into());
        assert_eq!(
            frames[0].options,
            [comment, EnhancedPacketOption::Flags(INBOUND)]
        );
        assert_eq!(frames[1].options[1], EnhancedPacketOption::Flags(OUTBOUND));
    }

    #[test]
    fn packets_that_were_not_sent_have_no_frame() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, 96).expect("a capture");
        capture.add(&packet()).expect("nothing to write");
        drop(capture);
        let mut reader = PcapNgReader::new(&file[..]).expect("a pcapng file");
        assert!(reader.next_block().is_none());
    }

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
        let mut capture = Capture::new(Broken(ErrorKind::BrokenPipe), 96).expect("a capture");
        assert!(!capture.flush().expect("no error"));
        let error = Capture::new(Broken(ErrorKind::StorageFull), 96).err();
        let error = error.expect("an error").error;
        assert_eq!(error, "cannot write the capture: no storage space");
    }
}
