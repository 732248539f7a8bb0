//! The pod's interfaces, as the host counts them.

use bulkhead_proto::agent;
use bulkhead_proto::cri::MetricType;

use super::{Family, Subject, Values};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        name: "container_network_receive_bytes_total",
        help: "Bytes received",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.rx_bytes),
    },
    Family {
        name: "container_network_receive_packets_total",
        help: "Packets received",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.rx_packets),
    },
    Family {
        name: "container_network_receive_packets_dropped_total",
        help: "Packets dropped that should have been received",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.rx_dropped),
    },
    Family {
        name: "container_network_receive_errors_total",
        help: "Errors while packets were received",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.rx_errors),
    },
    Family {
        name: "container_network_transmit_bytes_total",
        help: "Bytes sent",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.tx_bytes),
    },
    Family {
        name: "container_network_transmit_packets_total",
        help: "Packets sent",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.tx_packets),
    },
    Family {
        name: "container_network_transmit_packets_dropped_total",
        help: "Packets dropped that should have been sent",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.tx_dropped),
    },
    Family {
        name: "container_network_transmit_errors_total",
        help: "Errors while packets were sent",
        kind: MetricType::Counter,
        labels: &["interface"],
        values: |subject| interfaces(subject, |interface| interface.tx_errors),
    },
];

fn interfaces(subject: &Subject<'_>, figure: fn(&agent::InterfaceStats) -> u64) -> Values {
    subject.interfaces.iter().map(|interface| (vec![interface.name.clone()], figure(interface))).collect()
}
