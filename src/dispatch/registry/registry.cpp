#include <array>
#include <functional>
#include <memory>

#include <fmt/format.h>

#include "core/complaint.hpp"
#include "dispatch/call/config_check.hpp"
#include "dispatch/host/alltoall/alltoall.hpp"
#include "dispatch/host/direct/direct.hpp"
#include "dispatch/reference/reference_dispatcher.hpp"

namespace epistle {
namespace {

template <typename Implementation>
std::unique_ptr<Dispatcher> create(Group& group, const DispatcherConfig& config) {
  return std::make_unique<Implementation>(group, config);
}

struct Entry {
  DispatcherInfo info;
  std::unique_ptr<Dispatcher> (*create)(Group& group, const DispatcherConfig& config);
};

const std::array<Entry, 3>& entries() {
  static const std::array<Entry, 3> all = {{
      {{host::DirectDispatcher::kName, "each row written once per (token, rank) straight to its final place"},
       create<host::DirectDispatcher>},
      {{host::AllToAllDispatcher::kName, "permute, one all-to-all-v, unpermute: the conservative baseline"},
       create<host::AllToAllDispatcher>},
      {{reference::ReferenceDispatcher::kName, "every rank sees all inputs, one element at a time: for checking"},
       create<reference::ReferenceDispatcher>},
  }};
  return all;
}

const Entry* find_entry(std::string_view name) {
  for (const Entry& entry : entries()) {
    if (entry.info.name == name) return &entry;
  }
  return nullptr;
}

}  // namespace

const std::vector<DispatcherInfo>& dispatcher_registry() noexcept {
  static const std::vector<DispatcherInfo> infos = [] {
    std::vector<DispatcherInfo> result;
    for (const Entry& entry : entries()) result.push_back(entry.info);
    return result;
  }();
  return infos;
}

std::unique_ptr<Dispatcher> make_dispatcher(std::string_view name, Group& group, const DispatcherConfig& config) {
  const Entry* entry = find_entry(name);
  DispatcherConfig resolved = config;
  const Complaint error = attempt([&] {
    if (entry == nullptr) {
      std::string known;
      for (const DispatcherInfo& info : dispatcher_registry()) known += fmt::format(" {}", info.name);
      throw Error(ErrorCode::kNotFound, fmt::format("there is no dispatcher '{}'; known:{}", name, known));
    }
    resolved = resolve_config(config, group.size());
    host::configure_simd();
  });
  // A rank with a bad configuration tells the others before it throws: nobody waits for it.
  GroupImpl& impl = group.impl();
  agree_on_config(impl, resolved, name, error);
  std::unique_ptr<Dispatcher> dispatcher;
  impl.take_together({.kind = CallKind::kCreateDispatcher}, Phase::kCreate,
                     [&] { dispatcher = entry->create(group, resolved); });
  return dispatcher;
}

}  // namespace epistle
