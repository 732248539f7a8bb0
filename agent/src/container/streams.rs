//! The pipes of a process that is about to be made.

use std::io;
use std::os::fd::OwnedFd;

use bulkhead_proto::agent::Process;

use super::launch::Launched;
use super::request::FdTable;
use super::user_namespace::UserNamespace;
use crate::helper::spec::{ProcessSpec, Stdio};
use crate::io::ProcessIo;

/// The agent's ends.
#[derive(Debug)]
pub enum Streams {
    /// Input (when asked for), output, error.
    Pipes(Option<OwnedFd>, OwnedFd, OwnedFd),
    /// The helper makes a terminal; whether it may be typed into.
    Terminal(bool),
}

impl Streams {
    /// Makes what `process` asks for and puts the other ends in `fds`, as the property of the root of `users`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn make(
        process: &Process,
        spec: &mut ProcessSpec,
        fds: &mut FdTable,
        users: Option<&UserNamespace>,
    ) -> io::Result<Self> {
        if process.terminal {
            return Ok(Self::Terminal(process.stdin));
        }
        let (theirs, input) = if process.stdin {
            let (reader, writer) = io::pipe()?;
            (OwnedFd::from(reader), Some(writer.into()))
        } else {
            // Not /dev/null: through /proc/self/fd/0 a container could change the mode or owner of the host's node.
            (io::pipe()?.0.into(), None)
        };
        let (output, output_writer) = io::pipe()?;
        let (error, error_writer) = io::pipe()?;
        if let Some(users) = users {
            users.give(&theirs)?;
            users.give(&output_writer)?;
            users.give(&error_writer)?;
        }
        spec.stdio = Stdio::Pipes(fds.add(theirs), fds.add(output_writer.into()), fds.add(error_writer.into()));
        Ok(Self::Pipes(input, output.into(), error.into()))
    }

    /// The streams of the launched process.
    ///
    /// # Errors
    /// The kernel's, or a terminal that did not come.
    pub fn attach(self, launched: &mut Launched) -> io::Result<ProcessIo> {
        match self {
            Self::Pipes(input, output, error) => ProcessIo::pipes(input, output, error),
            Self::Terminal(input) => {
                let controller = launched.terminal.take();
                let controller = controller.ok_or_else(|| io::Error::other("the helper sent no terminal"))?;
                ProcessIo::terminal(controller, input)
            }
        }
    }
}
