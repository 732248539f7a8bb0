//! virtio-console against a driver of ours: what is printed, and what is typed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod driver;

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bulkhead_vmm::devices::console::{Keyboard, RX_QUEUE, TX_QUEUE, VirtioConsole};
use bulkhead_vmm::devices::virtio::VirtioDevice;
use bulkhead_vmm::state::{DeviceState, Snapshot, decode, encode};
use driver::transport::Machine;
use driver::{BUFFERS, HOLE, readable, writable};
use vm_memory::{Bytes, GuestAddress};

#[derive(Clone, Default)]
struct Screen(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.0.lock().unwrap().extend(bytes);
        self.0.1.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Screen {
    fn wait(&self, text: &[u8]) {
        let seen = self.0.0.lock().unwrap();
        let (seen, _) =
            self.0.1.wait_timeout_while(seen, Duration::from_secs(30), |seen| seen.len() < text.len()).unwrap();
        assert_eq!(*seen, text);
    }
}

fn machine(keyboard: Option<Keyboard>) -> (Machine<VirtioConsole>, Screen) {
    let screen = Screen::default();
    let console = VirtioConsole::new(Box::new(screen.clone())).with_keyboard(keyboard);
    let mut machine = Machine::new(console, driver::ram(), 2, 64);
    machine.activate(machine.device.features()).unwrap();
    (machine, screen)
}

fn typed(machine: &mut Machine<VirtioConsole>) -> Vec<u8> {
    let (_, written) = machine.wait_used(RX_QUEUE);
    let mut bytes = vec![0; written as usize];
    machine.ram.read_slice(&mut bytes, GuestAddress(BUFFERS)).unwrap();
    bytes
}

#[test]
fn what_is_typed_waits_for_the_guests_buffers() {
    let keyboard = Keyboard::new().unwrap();
    assert_eq!(keyboard.press(b"before "), 7);
    let (mut machine, screen) = machine(Some(keyboard.clone()));
    keyboard.press(b"the guest");
    // One buffer after the other, the first too small for all.
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(BUFFERS, 10)]);
    machine.kick(RX_QUEUE);
    assert_eq!(typed(&mut machine), b"before the");
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(BUFFERS, 4096)]);
    machine.kick(RX_QUEUE);
    assert_eq!(typed(&mut machine), b" guest");
    // Room first, keys afterwards; a chain that is none costs nothing.
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(HOLE - 4, 64)]);
    machine.rings[RX_QUEUE].submit(&machine.ram, &[readable(BUFFERS, 64)]);
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(BUFFERS, 64)]);
    machine.kick(RX_QUEUE);
    keyboard.press(b"x");
    assert_eq!((machine.wait_used(RX_QUEUE).1, machine.wait_used(RX_QUEUE).1), (0, 0));
    assert_eq!(typed(&mut machine), b"x");
    machine.ram.write_slice(b"printed", GuestAddress(BUFFERS)).unwrap();
    machine.rings[TX_QUEUE].submit(&machine.ram, &[readable(BUFFERS, 7)]);
    machine.kick(TX_QUEUE);
    machine.wait_used(TX_QUEUE);
    screen.wait(b"printed");
}

#[test]
fn a_console_goes_on_in_another() {
    let (mut machine, screen) = machine(None);
    machine.ram.write_slice(b"first", GuestAddress(BUFFERS)).unwrap();
    machine.rings[TX_QUEUE].submit(&machine.ram, &[readable(BUFFERS, 5)]);
    machine.kick(TX_QUEUE);
    machine.wait_used(TX_QUEUE);
    screen.wait(b"first");
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(BUFFERS, 64)]);
    let state = machine.device.suspend().unwrap();
    assert_eq!(decode::<DeviceState>(&encode(&state).unwrap()).unwrap(), state);
    // Printed while nobody looked.
    machine.ram.write_slice(b" and last", GuestAddress(BUFFERS + 64)).unwrap();
    machine.rings[TX_QUEUE].submit(&machine.ram, &[readable(BUFFERS + 64, 9)]);
    let keyboard = Keyboard::new().unwrap();
    keyboard.press(b"typed");
    let console = VirtioConsole::new(Box::new(screen.clone())).with_keyboard(Some(keyboard));
    let mut other = Machine::new(console, driver::ram(), 2, 64);
    other.device.restore(&state).unwrap();
    other.go_on(&state, machine).unwrap();
    other.wait_used(TX_QUEUE);
    screen.wait(b"first and last");
    assert_eq!(typed(&mut other), b"typed");
}

#[test]
fn nobody_types_more_than_fits() {
    let keyboard = Keyboard::new().unwrap();
    assert_eq!(keyboard.press(&[b'a'; 5000]), 4096);
    assert_eq!(keyboard.press(b"b"), 0);
    let (mut machine, _) = machine(Some(keyboard.clone()));
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(BUFFERS, 8192)]);
    machine.kick(RX_QUEUE);
    assert_eq!(typed(&mut machine).len(), 4096);
    assert_eq!(keyboard.press(b"b"), 1);
}

#[test]
fn without_a_keyboard_the_guests_buffers_stay_its_own() {
    let (mut machine, screen) = machine(None);
    machine.rings[RX_QUEUE].submit(&machine.ram, &[writable(BUFFERS, 64)]);
    machine.kick(RX_QUEUE);
    machine.ram.write_slice(b"quiet", GuestAddress(BUFFERS + 4096)).unwrap();
    machine.rings[TX_QUEUE].submit(&machine.ram, &[readable(BUFFERS + 4096, 5)]);
    machine.kick(TX_QUEUE);
    machine.wait_used(TX_QUEUE);
    screen.wait(b"quiet");
    assert!(machine.rings[RX_QUEUE].used(&machine.ram).is_none());
}
