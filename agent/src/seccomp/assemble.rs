//! Classic BPF with labels. Jumps only lead forward, as the kernel demands.

use super::Instruction;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
/// Farthest that a conditional jump reaches.
const NEAR: usize = 255;

/// What a conditional jump asks of the accumulator and its operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
}

/// A place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

#[derive(Debug)]
enum Operation {
    Load(u32),
    And(u32),
    Branch { test: Test, operand: u32, yes: Label, no: Label },
    Return(u32),
}

/// A program being written.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    operations: Vec<Operation>,
    /// Index of the operation that each label stands before.
    labels: Vec<Option<usize>>,
}

impl Assembler {
    /// A label that stands nowhere yet.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label here.
    pub(super) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.operations.len());
    }

    /// Loads four bytes of `struct seccomp_data`.
    pub(super) fn load(&mut self, offset: u32) {
        self.operations.push(Operation::Load(offset));
    }

    /// Keeps the bits of `mask`.
    pub(super) fn and(&mut self, mask: u32) {
        self.operations.push(Operation::And(mask));
    }

    /// Goes on at `yes` or `no`, which are placed later.
    pub(super) fn branch(&mut self, test: Test, operand: u32, yes: Label, no: Label) {
        self.operations.push(Operation::Branch { test, operand, yes, no });
    }

    /// Ends the program's run.
    pub(super) fn answer(&mut self, value: u32) {
        self.operations.push(Operation::Return(value));
    }

    /// Turns labels into distances. A branch that leads too far becomes a short one over two long jumps.
    pub(super) fn finish(self) -> Vec<Instruction> {
        let mut far = vec![false; self.operations.len()];
        let mut addresses = self.addresses(&far);
        loop {
            let mut grown = false;
            for (index, operation) in self.operations.iter().enumerate() {
                let Operation::Branch { yes, no, .. } = operation else { continue };
                let distance = |label| self.distance(&addresses, label, addresses[index] + 1);
                if !far[index] && distance(*yes).max(distance(*no)) > NEAR {
                    far[index] = true;
                    grown = true;
                }
            }
            if !grown {
                break;
            }
            addresses = self.addresses(&far);
        }
        let mut program = Vec::with_capacity(addresses.last().copied().unwrap_or(0));
        for (index, operation) in self.operations.iter().enumerate() {
            self.emit(&mut program, operation, far[index], &addresses);
        }
        program
    }

    fn addresses(&self, far: &[bool]) -> Vec<usize> {
        let sizes = far.iter().map(|far| if *far { 3 } else { 1 });
        let starts = sizes.scan(0, |next, size| {
            let start = *next;
            *next += size;
            Some(start)
        });
        starts.collect()
    }

    fn distance(&self, addresses: &[usize], label: Label, from: usize) -> usize {
        let target = self.labels[label.0].and_then(|index| addresses.get(index)).copied();
        target.and_then(|target| target.checked_sub(from)).unwrap_or(0)
    }

    fn emit(&self, program: &mut Vec<Instruction>, operation: &Operation, far: bool, addresses: &[usize]) {
        let plain = |code, k| Instruction { code, jt: 0, jf: 0, k };
        let here = program.len();
        match operation {
            Operation::Load(offset) => program.push(plain(LOAD, *offset)),
            Operation::And(mask) => program.push(plain(AND, *mask)),
            Operation::Return(value) => program.push(plain(RETURN, *value)),
            Operation::Branch { test, operand, yes, no } if far => {
                let long = |label, from| plain(JUMP, self.distance(addresses, label, from) as u32);
                program.push(Instruction { code: *test as u16, jt: 0, jf: 1, k: *operand });
                program.push(long(*yes, here + 2));
                program.push(long(*no, here + 3));
            }
            Operation::Branch { test, operand, yes, no } => {
                let near = |label| self.distance(addresses, label, here + 1) as u8;
                program.push(Instruction { code: *test as u16, jt: near(*yes), jf: near(*no), k: *operand });
            }
        }
    }
}
