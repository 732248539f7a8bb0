//! The I/O ports: an output for words before the console works, and the ways to end the machine.

use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// The first serial port.
const SERIAL: u16 = 0x3f8;
const SERIAL_LAST: u16 = SERIAL + 7;
const LINE_CONTROL: u16 = SERIAL + 3;
const LINE_STATUS: u16 = SERIAL + 5;
const INTERRUPT_IDENTITY: u16 = SERIAL + 2;
/// The divisor is visible instead of data.
const DIVISOR_ACCESS: u8 = 0x80;
/// Ready for the next byte, and nothing left to send.
const READY: u8 = 0x60;
const NO_INTERRUPT: u8 = 1;

/// The keyboard controller's command port.
const KEYBOARD: u16 = 0x64;
/// Pulses the processors' reset line.
const RESET: u8 = 0xfe;
/// The clock's index and data.
const CLOCK: [u16; 2] = [0x70, 0x71];

/// Where a guest says that it is done: a register like that of ACPI machines, at QEMU's place.
pub const POWER_OFF_PORT: u16 = 0x604;
/// What it writes there, in the second byte: "sleep" into the deepest state.
pub const POWER_OFF: u8 = 0x20;

/// What a write asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    None,
    /// The guest restarts, which pods do not.
    Reset,
    /// The guest is done.
    PowerOff,
}

/// Everything behind `in` and `out`.
pub struct Ports {
    serial: Mutex<Serial>,
}

struct Serial {
    output: Box<dyn Write + Send>,
    line_control: u8,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

impl Ports {
    /// What the guest prints before its console works goes to `output`.
    #[must_use]
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self { serial: Mutex::new(Serial { output, line_control: 0 }) }
    }

    /// `in`: all ones where there is nothing.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let value = match port {
            LINE_STATUS => READY,
            INTERRUPT_IDENTITY => NO_INTERRUPT,
            LINE_CONTROL => self.serial().line_control,
            SERIAL..=SERIAL_LAST => 0,
            // A clock that is never in the middle of an update, which a kernel would wait for.
            _ if CLOCK.contains(&port) => 0,
            // Its buffers are empty.
            KEYBOARD => 0,
            _ => 0xff,
        };
        data.fill(value);
    }

    /// `out`.
    pub fn write(&self, port: u16, data: &[u8]) -> Wish {
        match port {
            SERIAL..=SERIAL_LAST => self.write_serial(port, data),
            KEYBOARD if data == [RESET] => return Wish::Reset,
            POWER_OFF_PORT if data.len() == 2 && data[1] & POWER_OFF != 0 => return Wish::PowerOff,
            _ => {}
        }
        Wish::None
    }

    fn write_serial(&self, port: u16, data: &[u8]) {
        let mut serial = self.serial();
        match port {
            // The console keeps its own errors.
            SERIAL if serial.line_control & DIVISOR_ACCESS == 0 => drop(serial.output.write_all(data)),
            LINE_CONTROL => serial.line_control = data.last().copied().unwrap_or(0),
            _ => {}
        }
    }

    fn serial(&self) -> std::sync::MutexGuard<'_, Serial> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_come_out_and_the_divisor_does_not() {
        let sink = Sink::default();
        let ports = Ports::new(Box::new(sink.clone()));
        for (port, byte) in [(3, 0x80), (0, 1), (3, 3), (0, b'h'), (0, b'i'), (4, 9)] {
            assert_eq!(ports.write(SERIAL + port, &[byte]), Wish::None);
        }
        assert_eq!(*sink.0.lock().unwrap(), b"hi");
        let mut data = [0];
        ports.read(LINE_STATUS, &mut data);
        assert_eq!(data, [READY]);
    }

    #[test]
    fn ends_are_told_apart() {
        let ports = Ports::new(Box::new(std::io::sink()));
        assert_eq!(ports.write(KEYBOARD, &[0xfe]), Wish::Reset);
        assert_eq!(ports.write(KEYBOARD, &[0xd1]), Wish::None);
        assert_eq!(ports.write(POWER_OFF_PORT, &[0, 0x20]), Wish::PowerOff);
        assert_eq!(ports.write(POWER_OFF_PORT, &[0x20]), Wish::None);
        let mut data = [0; 4];
        ports.read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
