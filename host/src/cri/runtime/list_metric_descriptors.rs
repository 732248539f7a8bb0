//! ListMetricDescriptors: the same for as long as the daemon runs.

use bulkhead_proto::cri;

use crate::metrics;

pub(super) fn list_metric_descriptors(_: cri::ListMetricDescriptorsRequest) -> cri::ListMetricDescriptorsResponse {
    cri::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }
}
