#include "migrate/stages.hpp"

#include <atomic>

namespace epistle::migrate {
namespace {

std::atomic<StageHook> stage_hook{nullptr};

}  // namespace

std::string_view to_string(Stage stage) noexcept {
  constexpr std::string_view kNames[] = {"begun",     "copying",  "copied",  "reported",
                                         "announced", "deciding", "decided", "switched"};
  return kNames[static_cast<std::size_t>(stage)];
}

void set_stage_hook(StageHook hook) noexcept { stage_hook.store(hook); }

void reach(Stage stage, std::uint32_t round) {
  if (const StageHook hook = stage_hook.load(std::memory_order_relaxed); hook != nullptr) hook(stage, round);
}

}  // namespace epistle::migrate
