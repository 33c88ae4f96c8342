// How the ranks of a group learn of each other's failures in a step that every rank takes on its own.
#pragma once

#include <array>
#include <string_view>
#include <type_traits>
#include <vector>

#include "epistle/error.hpp"

#include "core/complaint.hpp"
#include "group/group_impl.hpp"

namespace epistle::cuda {

/// What became of a rank's step, as the others are told.
struct StepStatus {
  ErrorCode code = ErrorCode::kOk;
  std::array<char, 256> message{};
};

[[nodiscard]] StepStatus to_status(const Complaint& error);

/// On all ranks alike: throws `own_error`, or kPeerRejected for the first rank that failed; kOutOfMemory where memory
/// is what it lacked. `step` ends "rank 3 failed in ...".
void check_step(const GroupImpl& group, const Complaint& own_error, const std::vector<StepStatus>& statuses,
                std::string_view step);

/// Collective: returns every rank's `own` once all have come here without an error; otherwise all throw.
template <typename Facts>
[[nodiscard]] std::vector<Facts> agree(GroupImpl& group, const Complaint& error, std::string_view step,
                                       const Facts& own) {
  struct Post {
    StepStatus status;
    Facts facts;
  };
  static_assert(std::is_trivially_copyable_v<Post>);
  const Post own_post{to_status(error), own};
  const auto num_ranks = static_cast<std::size_t>(group.num_ranks());
  std::vector<Post> posts(num_ranks);
  group.all_gather(&own_post, sizeof(own_post), posts.data(), Phase::kCreate);
  std::vector<StepStatus> statuses;
  std::vector<Facts> facts;
  statuses.reserve(num_ranks);
  facts.reserve(num_ranks);
  for (const Post& post : posts) {
    statuses.push_back(post.status);
    facts.push_back(post.facts);
  }
  check_step(group, error, statuses, step);
  return facts;
}

/// The same where there is nothing to tell but success.
void agree(GroupImpl& group, const Complaint& error, std::string_view step);

}  // namespace epistle::cuda
