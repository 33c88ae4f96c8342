// Checks a dispatcher's configuration and turns it into layout parameters.
#pragma once

#include "epistle/dispatcher.hpp"

#include "group/group_impl.hpp"

namespace epistle {

/// The configuration with its defaults filled in (combine_dtype, combine_hidden). Throws kInvalidArgument or
/// kUnsupported.
[[nodiscard]] DispatcherConfig resolve_config(const DispatcherConfig& config, int num_ranks);

[[nodiscard]] LayoutParams to_layout_params(const DispatcherConfig& resolved, int num_ranks, Transport transport);

/// Collective: every rank learns whether all ranks have the same valid configuration. Throws this rank's own complaint;
/// or kPeerRejected where another rank has one; or kShapeMismatch that names the field.
void agree_on_config(GroupImpl& group, const DispatcherConfig& config, std::string_view dispatcher_name,
                     const Complaint& complaint);

}  // namespace epistle
