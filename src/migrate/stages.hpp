// Where a rank is in a migration, for tests that let one die at every place.
#pragma once

#include <cstdint>
#include <string_view>

namespace epistle::migrate {

enum class Stage : std::int32_t {
  kBegun,      ///< all have agreed to the plan; nothing is copied
  kCopying,    ///< a chunk has arrived, or none is to come
  kCopied,     ///< all of a round has arrived here, and nobody knows
  kReported,   ///< the others can know
  kAnnounced,  ///< rank 0 has said when to switch
  kDeciding,   ///< about to decide for the switch
  kDecided,    ///< the switch is decided, and not made here
  kSwitched,   ///< the new placement is in force here
};
inline constexpr std::int32_t kNumStages = 8;
[[nodiscard]] std::string_view to_string(Stage stage) noexcept;

/// Called with the number of the round, from 1 in the life of a store. Null = nothing.
using StageHook = void (*)(Stage stage, std::uint32_t round);
void set_stage_hook(StageHook hook) noexcept;

/// Tells the hook.
void reach(Stage stage, std::uint32_t round);

}  // namespace epistle::migrate
