//! The compiled program against the rules it was made from, and against the kernel.

use proptest::prelude::*;

use super::rules::X32_BIT;
use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ARM64: u32 = 0xc000_00b7;

/// `struct seccomp_data` without the instruction pointer.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            _ => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        }
    }
}

/// Runs a program as the kernel would.
fn run(program: &Program, call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program.instructions[at];
        at += 1;
        let skip = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => accumulator = call.word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += skip(accumulator == k),
            0x25 => at += skip(accumulator > k),
            0x35 => at += skip(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// What the rules say, read as a person would.
fn evaluate(filter: &Filter, call: &Call) -> u32 {
    if call.number == u32::MAX && call.arch != ARM64 {
        return Action::Allow.value();
    }
    let (abi, number) = match (call.arch, call.number >= X32_BIT) {
        (X86_64, false) => (Abi::X86_64, call.number),
        (X86_64, true) => (Abi::X32, call.number - X32_BIT),
        (I386, _) => (Abi::I386, call.number),
        _ => return Action::KillProcess.value(),
    };
    let Some(architecture) = filter.architectures.iter().find(|a| a.abi == abi) else {
        return Action::KillProcess.value();
    };
    let holds = |condition: &Condition| {
        let (argument, value) = (call.arguments[usize::from(condition.argument)], condition.value);
        match condition.comparison {
            Comparison::Equal => argument == value,
            Comparison::NotEqual => argument != value,
            Comparison::Less => argument < value,
            Comparison::LessOrEqual => argument <= value,
            Comparison::Greater => argument > value,
            Comparison::GreaterOrEqual => argument >= value,
            Comparison::MaskedEqual { mask } => argument & mask == value,
        }
    };
    let fits = |rule: &&Rule| rule.numbers.contains(&number) && rule.conditions.iter().all(holds);
    let action = match (architecture.rules.iter().find(fits), filter.default_action) {
        (Some(rule), _) => rule.action,
        (None, Action::Errno(_)) if number > architecture.newest => Action::Errno(38),
        (None, default) => default,
    };
    action.value()
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::KillProcess),
        Just(Action::KillThread),
        Just(Action::Trap),
        (0u16..4096).prop_map(Action::Errno),
        any::<u16>().prop_map(Action::Trace),
        Just(Action::Log),
        Just(Action::Allow),
    ]
}

/// Values whose halves collide often.
fn values() -> impl Strategy<Value = u64> {
    let half = || prop_oneof![Just(0u64), Just(1), Just(2), Just(0xffff_ffff), 0u64..8];
    (half(), half()).prop_map(|(high, low)| high << 32 | low)
}

fn conditions() -> impl Strategy<Value = Condition> {
    let comparisons = prop_oneof![
        Just(Comparison::Equal),
        Just(Comparison::NotEqual),
        Just(Comparison::Less),
        Just(Comparison::LessOrEqual),
        Just(Comparison::Greater),
        Just(Comparison::GreaterOrEqual),
        values().prop_map(|mask| Comparison::MaskedEqual { mask }),
    ];
    (0u8..6, comparisons, values()).prop_map(|(argument, comparison, value)| Condition { argument, comparison, value })
}

fn rules() -> impl Strategy<Value = Rule> {
    let numbers = prop::collection::vec(prop_oneof![0u32..24, Just(X32_BIT - 1)], 1..6);
    (numbers, prop::collection::vec(conditions(), 0..4), actions()).prop_map(|(numbers, conditions, action)| Rule {
        numbers,
        conditions,
        action,
    })
}

fn filters() -> impl Strategy<Value = Filter> {
    let abis = prop::sample::subsequence(vec![Abi::X86_64, Abi::X32, Abi::I386], 0..=3);
    let rules = || (prop::collection::vec(rules(), 0..20), prop_oneof![0u32..30, Just(X32_BIT - 1)]);
    (actions(), abis, prop::array::uniform3(rules())).prop_map(|(default_action, abis, all)| {
        let architectures = abis.into_iter().zip(all);
        let architectures = architectures.map(|(abi, (rules, newest))| Architecture { abi, rules, newest });
        Filter { default_action, architectures: architectures.collect(), flags: 0 }
    })
}

fn calls() -> impl Strategy<Value = Call> {
    let number = prop_oneof![
        6 => 0u32..26,
        3 => X32_BIT..X32_BIT + 26,
        1 => Just(u32::MAX),
        1 => Just(X32_BIT - 1),
        1 => any::<u32>(),
    ];
    let arch = prop_oneof![4 => Just(X86_64), 2 => Just(I386), 1 => Just(ARM64)];
    (number, arch, prop::array::uniform6(values())).prop_map(|(number, arch, arguments)| Call {
        number,
        arch,
        arguments,
    })
}

proptest! {
    #[test]
    fn programs_decide_as_their_rules(filter in filters(), calls in prop::collection::vec(calls(), 40)) {
        let program = compile(&filter).unwrap();
        for call in calls {
            prop_assert_eq!(run(&program, &call), evaluate(&filter, &call), "{:x?}", call);
        }
    }
}

fn rule(numbers: &[u32], conditions: Vec<Condition>, action: Action) -> Rule {
    Rule { numbers: numbers.to_vec(), conditions, action }
}

fn filter(default_action: Action, rules: Vec<Rule>) -> Filter {
    Filter { default_action, architectures: vec![Architecture { abi: Abi::X86_64, rules, newest: 460 }], flags: 0 }
}

fn equal(argument: u8, value: u64) -> Condition {
    Condition { argument, comparison: Comparison::Equal, value }
}

#[test]
fn far_jumps_are_taken_in_steps() {
    let many = |number: u32| {
        let values = (0..60).map(move |value| rule(&[number], vec![equal(1, value * 7)], Action::Errno(value as u16)));
        values.collect::<Vec<_>>()
    };
    let filter = filter(Action::Allow, [2, 5, 9].into_iter().flat_map(many).collect());
    let program = compile(&filter).unwrap();
    assert!(program.instructions.len() > 700, "{}", program.instructions.len());
    for number in 0..12 {
        for argument in [0, 7, 8, 59 * 7, 60 * 7, 1 << 32] {
            let call = Call { number, arch: X86_64, arguments: [0, argument, 0, 0, 0, 0] };
            assert_eq!(run(&program, &call), evaluate(&filter, &call), "{call:?}");
        }
    }
}

#[test]
fn what_the_kernel_would_refuse_is_told() {
    let rules = (0..900).map(|value| rule(&[3], vec![equal(0, value)], Action::Allow)).collect();
    let error = compile(&filter(Action::Errno(1), rules)).unwrap_err();
    assert!(error.contains("4096") && error.contains("fewer argument filters"), "{error}");
}

#[test]
fn the_kernel_takes_a_program_and_obeys() {
    const GETPRIORITY: u32 = 140;
    const PRIO_PGRP: u64 = 1;
    let rules = vec![rule(&[GETPRIORITY], vec![equal(0, PRIO_PGRP), equal(1, 0)], Action::Errno(43))];
    let program = compile(&filter(Action::Allow, rules)).unwrap();
    // The filter stays on its thread, which ends with the test.
    let seen = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        crate::sys::set_seccomp_filter(&program).unwrap();
        let group = rustix::process::getpriority_pgrp(None).map_err(rustix::io::Errno::raw_os_error);
        (rustix::process::getpriority_process(None).is_ok(), group)
    });
    assert_eq!(seen.join().unwrap(), (true, Err(43)));
}
