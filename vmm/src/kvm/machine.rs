//! Building a machine and running it.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use vm_memory::{Address, GuestMemory, GuestMemoryRegion};

use super::bus::Bus;
use super::exits::{ExitKind, Exits};
use super::gate::Gate;
use super::memory;
use super::ports::Ports;
use super::vcpu::{self, Running, Surroundings};
use super::x86_64::{cpuid, registers};
use crate::boot::{BootError, Entry, layout};
use crate::devices::GuestRam;
use crate::mmio::transport::QUEUE_NOTIFY;
use crate::mmio::{Transport, TransportError};
use crate::state::Snapshot;

/// What KVM must be able to do.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "guest memory of a process (KVM_CAP_USER_MEMORY)"),
    (Cap::Irqchip, "an interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "interrupts by descriptors (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "notifications by descriptors (KVM_CAP_IOEVENTFD)"),
    (Cap::ImmediateExit, "leaving at once (KVM_CAP_IMMEDIATE_EXIT)"),
    (Cap::ExtCpuid, "setting features (KVM_CAP_EXT_CPUID)"),
];

/// How a machine ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// An exception that the guest could not handle, nor the failure to.
    TripleFault,
    /// The guest restarted.
    Reset,
    /// The guest said that it is done.
    PowerOff,
    /// KVM or a processor; for people.
    Failed(String),
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A request to KVM.
    #[error("KVM: cannot {step}: {source}")]
    Kvm {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Of too old a kernel.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// Guest memory.
    #[error("cannot make {mib} MiB of guest memory: {source}")]
    Memory {
        /// As asked.
        mib: u64,
        /// Why.
        source: io::Error,
    },
    /// More than there are interrupts.
    #[error("a machine has at most {} devices", layout::MAX_DEVICES)]
    TooManyDevices,
    /// A device's registers.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A processor's thread.
    #[error("cannot start a processor's thread: {0}")]
    Thread(io::Error),
}

fn kvm<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> MachineError {
    move |error| MachineError::Kvm { step, source: error.into() }
}

/// A machine under construction: memory and processors, no devices yet.
///
/// KVM ties it to the process that made it: a fork in between makes every later request fail.
#[derive(Debug)]
pub struct Builder {
    vm: VmFd,
    vcpus: Vec<VcpuFd>,
    ram: GuestRam,
    memory_bytes: u64,
    devices: Vec<Transport>,
}

impl Builder {
    /// A machine with this many processors (from 1) and MiB of memory.
    ///
    /// # Errors
    /// When KVM or the kernel refuses.
    pub fn new(vcpus: u8, memory_mib: u64) -> Result<Self, MachineError> {
        let system = Kvm::new().map_err(kvm("open /dev/kvm"))?;
        if let Some((_, what)) = NEEDED.iter().find(|(cap, _)| !system.check_extension(*cap)) {
            return Err(MachineError::Lacks(what));
        }
        let vm = system.create_vm().map_err(kvm("create a VM"))?;
        vm.set_tss_address(layout::TSS).map_err(kvm("set the TSS address"))?;
        vm.create_irq_chip().map_err(kvm("create the interrupt controller"))?;
        let memory_bytes = memory_mib << 20;
        let ram = memory::create(memory_bytes).map_err(|source| MachineError::Memory { mib: memory_mib, source })?;
        give_memory(&vm, &ram)?;
        let leaves = system.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(kvm("read the supported features"))?;
        let deadline_timer = system.check_extension(Cap::TscDeadlineTimer);
        let mut fds = Vec::new();
        for id in 0..vcpus {
            let fd = vm.create_vcpu(u64::from(id)).map_err(kvm("create a processor"))?;
            let features = cpuid::processor(leaves.as_slice(), deadline_timer, id, vcpus);
            let features = cpuid::table(&features).ok_or(MachineError::Lacks("room for the processor's features"))?;
            fd.set_cpuid2(&features).map_err(kvm("set a processor's features"))?;
            registers::prepare(&fd).map_err(kvm("set a processor's registers"))?;
            fds.push(fd);
        }
        Ok(Self { vm, vcpus: fds, ram, memory_bytes, devices: Vec::new() })
    }

    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Its size in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Number of processors.
    #[must_use]
    pub fn vcpus(&self) -> u8 {
        u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX)
    }

    /// Puts a device on the bus; what the kernel's command line must say about it.
    ///
    /// # Errors
    /// When there is no interrupt left, or KVM refuses.
    pub fn add_device(&mut self, device: Box<dyn Snapshot>) -> Result<String, MachineError> {
        let index = self.devices.len();
        if index >= layout::MAX_DEVICES {
            return Err(MachineError::TooManyDevices);
        }
        let (address, irq) = (layout::device_address(index), layout::FIRST_IRQ + index as u32);
        let transport = Transport::new(device, self.ram.clone())?;
        self.vm.register_irqfd(transport.line().event(), irq).map_err(kvm("connect a device's interrupt"))?;
        for (queue, number) in transport.queues().iter().zip(0_u32..) {
            let place = IoEventAddress::Mmio(address + QUEUE_NOTIFY);
            self.vm.register_ioevent(queue.kick(), &place, number).map_err(kvm("connect a queue's notifications"))?;
        }
        self.devices.push(transport);
        Ok(format!("virtio_mmio.device=4K@{address:#x}:{irq}"))
    }

    /// Sets the first processor to a kernel's entry and starts the threads, which wait for [`Machine::resume`]. What the
    /// guest prints before its console works goes to `early_output`.
    ///
    /// # Errors
    /// When KVM refuses or there are no threads.
    pub fn start(
        self,
        entry: Entry,
        early_output: Box<dyn Write + Send>,
    ) -> Result<(Machine, UnboundedReceiver<End>), MachineError> {
        registers::write_descriptors(&self.ram)?;
        if let Some(first) = self.vcpus.first() {
            registers::enter(first, entry).map_err(kvm("set the first processor's registers"))?;
        }
        vcpu::install_signal().map_err(MachineError::Thread)?;
        let (ends, receiver) = unbounded_channel();
        let around = Surroundings {
            bus: Arc::new(Bus::new(self.devices)),
            ports: Arc::new(Ports::new(early_output)),
            gate: Arc::new(Gate::new(self.vcpus.len())),
            ends,
        };
        let (bus, gate) = (around.bus.clone(), around.gate.clone());
        let mut vcpus = Vec::new();
        let count = self.vcpus.len();
        for (index, fd) in self.vcpus.into_iter().enumerate() {
            match vcpu::start(fd, index, around.clone()) {
                Ok(vcpu) => vcpus.push(vcpu),
                Err(error) => {
                    (index..count).for_each(|_| gate.leave());
                    drop(Machine { vcpus, gate, bus, _vm: self.vm, ram: self.ram });
                    return Err(MachineError::Thread(error));
                }
            }
        }
        Ok((Machine { vcpus, gate, bus, _vm: self.vm, ram: self.ram }, receiver))
    }
}

fn give_memory(vm: &VmFd, ram: &GuestRam) -> Result<(), MachineError> {
    for (slot, region) in (0_u32..).zip(ram.iter()) {
        let area = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped whole for as long as `GuestRam` lives, and the builder and the machine keep a clone of
        // it until the VM's descriptors are closed. This process reads and writes it as volatile memory only.
        unsafe { vm.set_user_memory_region(area) }.map_err(kvm("give the VM its memory"))?;
    }
    Ok(())
}

/// Where a processor stands.
#[derive(Debug, Clone)]
pub struct Position {
    /// Its number.
    pub index: usize,
    /// The address of its instruction when it was held up last.
    pub instruction: u64,
    /// Exits by kind.
    pub exits: Exits,
}

/// A machine with its threads. Dropped, it ends.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Running>,
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    // After the processors.
    _vm: VmFd,
    ram: GuestRam,
}

impl Machine {
    /// Lets processors run.
    pub fn resume(&self) {
        self.gate.open();
    }

    /// Holds processors up; false when the machine is ending. Devices go on.
    pub fn pause(&self) -> bool {
        self.gate.close(|| self.kick())
    }

    /// Whether processors may run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.gate.is_open()
    }

    /// Exits so far, and where processors were when they were held up last.
    #[must_use]
    pub fn positions(&self) -> Vec<Position> {
        let position = |(index, vcpu): (usize, &Running)| Position {
            index,
            instruction: vcpu.facts.instruction.load(Ordering::Relaxed),
            exits: vcpu.facts.exits.all(),
        };
        self.vcpus.iter().enumerate().map(position).collect()
    }

    /// Exits of all processors so far.
    #[must_use]
    pub fn exits(&self) -> Exits {
        let mut sum = ExitKind::ALL.map(|kind| (kind, 0));
        for vcpu in &self.vcpus {
            sum.iter_mut().zip(vcpu.facts.exits.all()).for_each(|(sum, one)| sum.1 += one.1);
        }
        sum
    }

    /// Bytes of the guest's memory that the host holds for it; 0 when the kernel does not say.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let memfd = self.ram.iter().next().and_then(|region| region.file_offset());
        memfd.and_then(|offset| offset.file().metadata().ok()).map_or(0, |data| data.blocks() * 512)
    }

    /// Holds a running machine up for a moment to learn where its processors are.
    #[must_use]
    pub fn look(&self) -> Vec<Position> {
        let was_running = self.is_running();
        self.pause();
        if was_running {
            self.resume();
        }
        self.positions()
    }

    /// Ends processors, then the devices' threads, after what the guest has handed to them.
    pub fn stop(&self) {
        self.gate.stop(|| self.kick());
        self.vcpus.iter().for_each(Running::join);
        self.bus.stop();
    }

    /// After [`stop`](Self::stop): lets go of the devices. What a device still has to deliver takes as long as its readers.
    pub fn release(&self) {
        self.bus.release();
    }

    fn kick(&self) {
        self.vcpus.iter().for_each(Running::kick);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}
