//! The file server's side of a vhost-user connection says whatever the input says: a server that the guest took over.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use bulkhead_vmm::devices::fs::{Ring as ServerRing, Session};
use bulkhead_vmm::devices::worker::new_eventfd;
use bulkhead_vmm_fuzz::driver::Ring;
use bulkhead_vmm_fuzz::driver::memory::shared_ram;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    // All of it lies in the socket's buffer, and then the server is gone.
    theirs.set_nonblocking(true).unwrap();
    let _ = theirs.write(bytes);
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let Ok(mut session) = Session::new(ours, 2) else { return };
    let (ram, _file) = shared_ram();
    let (kick, call) = (new_eventfd().unwrap(), new_eventfd().unwrap());
    let queue = Ring::new(0x1_0000, 64).queue();
    let ring = ServerRing { index: 0, queue: &queue, kick: &kick, call: &call };
    if session.start(&ram, 1 << 32, &[ring]).is_ok() {
        let _ = session.stop(0);
    }
});
