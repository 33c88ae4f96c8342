// How the ranks of a group learn of each other's failures in a step that every rank takes on its own.
#pragma once

#include <algorithm>
#include <array>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "epistle/error.hpp"

#include "group/group_impl.hpp"

namespace epistle::cuda {

/// What became of a rank's step, as the others are told.
struct StepStatus {
  ErrorCode code = ErrorCode::kOk;
  std::array<char, 256> message{};
};

/// The error of `work`, whatever it threw.
template <typename Work>
[[nodiscard]] std::optional<Error> error_of(Work&& work) {
  try {
    std::forward<Work>(work)();
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return Error(ErrorCode::kOutOfMemory, "the host's memory is exhausted");
  } catch (const std::exception& error) {
    return Error(ErrorCode::kSystem, error.what());
  }
  return std::nullopt;
}

/// What the error was made with: its text without the code, rank and phase that Error puts in front.
[[nodiscard]] std::string message_of(const Error& error);

[[nodiscard]] StepStatus to_status(const std::optional<Error>& error);

/// Throws `own_error`, or kPeerRejected for the first rank that failed; kOutOfMemory where memory is what it lacked.
/// `step` ends "rank 3 failed in ...".
void check_step(const GroupImpl& group, const std::optional<Error>& own_error, const std::vector<StepStatus>& statuses,
                std::string_view step);

/// Collective: returns every rank's `own` once all have come here without an error; otherwise all throw.
template <typename Facts>
[[nodiscard]] std::vector<Facts> agree(GroupImpl& group, const std::optional<Error>& error, std::string_view step,
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
void agree(GroupImpl& group, const std::optional<Error>& error, std::string_view step);

}  // namespace epistle::cuda
