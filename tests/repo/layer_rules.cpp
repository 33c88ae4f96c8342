#include "repo/layer_rules.hpp"

#include <algorithm>
#include <optional>
#include <regex>
#include <set>

namespace repo_test {
namespace {

using Prefixes = std::vector<std::string_view>;

// A group of headers that only some files may include; tests and bench may include anything.
struct ThirdPartyRule {
  Prefixes headers;     // prefixes of includes
  Prefixes folders;     // where they are allowed; "" is everywhere
  Prefixes extensions;  // in which files they are allowed; "" is all
  std::string_view reason;
};

const std::vector<ThirdPartyRule>& third_party_rules() {
  static const std::vector<ThirdPartyRule> rules = {
      {{"fmt/"}, {""}, {".cpp"}, "fmt belongs into .cpp files: it does not compile under nvcc"},
      {{"CLI/"}, {"apps"}, {""}, "the command line is parsed in apps only"},
      {{"gtest/", "gmock/", "rapidcheck", "benchmark/"}, {}, {""}, "test frameworks belong into tests and bench"},
      {{"cuda", "nccl", "nvml", "cub/", "cooperative_groups", "cute/"},
       {"src/topology", "src/gpu", "src/dispatch/cuda", "src/dispatch/registry", "src/measure", "src/migrate/cuda",
        "apps", "examples"},
       {""},
       "only the rooms of the GPU see CUDA"},
      {{"rdma/"}, {"src/fabric/ofi"}, {""}, "only the endpoint sees libfabric"},
      {{"pmix"}, {"src/group/net/pmix"}, {""}, "only the gathering by PMIx sees its header"},
  };
  return rules;
}

// Quoted includes of these are third-party, not folders of the project.
const Prefixes& quoted_third_party() {
  static const Prefixes prefixes = {"hwy/"};
  return prefixes;
}

const std::set<std::string_view>& standard_headers() {
  static const std::set<std::string_view> headers = {"algorithm",     "any",
                                                     "array",         "atomic",
                                                     "barrier",       "bit",
                                                     "bitset",        "charconv",
                                                     "chrono",        "climits",
                                                     "cmath",         "compare",
                                                     "complex",       "concepts",
                                                     "cstddef",       "cstdint",
                                                     "cstdio",        "cstdlib",
                                                     "cstring",       "deque",
                                                     "exception",     "filesystem",
                                                     "fstream",       "functional",
                                                     "future",        "initializer_list",
                                                     "iosfwd",        "iostream",
                                                     "istream",       "iterator",
                                                     "limits",        "list",
                                                     "map",           "memory",
                                                     "mutex",         "new",
                                                     "numbers",       "numeric",
                                                     "optional",      "ostream",
                                                     "random",        "ranges",
                                                     "ratio",         "regex",
                                                     "set",           "span",
                                                     "sstream",       "stdexcept",
                                                     "string",        "string_view",
                                                     "system_error",  "thread",
                                                     "tuple",         "type_traits",
                                                     "typeindex",     "unordered_map",
                                                     "unordered_set", "utility",
                                                     "variant",       "vector",
                                                     "version"};
  return headers;
}

struct Include {
  std::size_t line = 0;
  std::string path;
  bool quoted = false;
};

std::vector<Include> find_includes(const SourceFile& file) {
  static const std::regex pattern(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::vector<Include> includes;
  std::size_t line_number = 0;
  for (const std::string_view line : file.lines()) {
    ++line_number;
    if (line.find("include") == std::string_view::npos) continue;
    std::match_results<std::string_view::const_iterator> match;
    if (!std::regex_match(line.begin(), line.end(), match, pattern)) continue;
    includes.push_back({.line = line_number, .path = match[2].str(), .quoted = match[1].str() == "\""});
  }
  return includes;
}

bool starts_with_any(std::string_view text, const Prefixes& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](std::string_view prefix) { return text.starts_with(prefix); });
}

bool contains(const Prefixes& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

const Layer* find_layer(const SourceFile& file) {
  // The longest folder wins: dispatch/reference has rules of its own.
  const Layer* best = nullptr;
  for (const Layer& layer : layers()) {
    if (file.is_in(layer.folder) && (best == nullptr || layer.folder.size() > best->folder.size())) best = &layer;
  }
  return best;
}

std::optional<std::string> check_third_party(const SourceFile& file, const Include& include) {
  if (file.is_in("tests") || file.is_in("bench")) return std::nullopt;
  for (const ThirdPartyRule& rule : third_party_rules()) {
    if (!starts_with_any(include.path, rule.headers)) continue;
    const bool folder_ok =
        contains(rule.folders, "") || std::any_of(rule.folders.begin(), rule.folders.end(),
                                                  [&](std::string_view folder) { return file.is_in(folder); });
    const bool extension_ok = std::any_of(rule.extensions.begin(), rule.extensions.end(),
                                          [&](std::string_view extension) { return file.path.ends_with(extension); });
    if (!folder_ok || !extension_ok) return std::string(rule.reason);
  }
  return std::nullopt;
}

std::optional<std::string> check_project_include(const Layer& layer, const Include& include) {
  if (starts_with_any(include.path, quoted_third_party())) return std::nullopt;
  const std::size_t slash = include.path.find('/');
  if (slash == std::string::npos || include.path.starts_with('.')) {
    // The headers of the command, and of the Python module, lie beside each other; everything else is named from src.
    if ((layer.folder == "apps/epistle" || layer.folder == "python/src") && slash == std::string::npos) {
      return std::nullopt;
    }
    return "write the path relative to src, folder first (\"core/settings.hpp\")";
  }
  const std::string_view folder = std::string_view(include.path).substr(0, slash);
  if (!contains(layer.may_use, folder)) return std::string(layer.folder) + " may not use " + std::string(folder);
  if (starts_with_any(include.path, layer.must_not)) return std::string(layer.folder) + " may not use this header";
  return std::nullopt;
}

std::optional<std::string> check_include(const SourceFile& file, const Layer* layer, const Include& include) {
  if (auto reason = check_third_party(file, include)) return reason;
  if (layer == nullptr) return std::nullopt;
  if (include.quoted) return check_project_include(*layer, include);
  if (include.path.starts_with("epistle/")) return "quote the project's own headers";
  if (layer->folder == "include" && !standard_headers().contains(include.path)) {
    return "public headers use the standard library only";
  }
  return std::nullopt;
}

}  // namespace

const std::vector<Layer>& layers() {
  // What may see CUDA, seen from what may not.
  static const Prefixes gpu = {"gpu/", "dispatch/cuda/"};
  static const Prefixes not_of_shared_gpu_code = {
      "dispatch/host/",        "dispatch/reference/",        "dispatch/registry/",      "dispatch/auto/",
      "dispatch/cuda/direct/", "dispatch/cuda/low_latency/", "dispatch/cuda/alltoall/", "dispatch/cuda/hybrid/"};
  static const std::vector<Layer> table = {
      {"include", {"epistle"}, {}},
      {"examples", {"epistle"}, {}},
      {"src/core", {"epistle", "core"}, {}},
      {"src/topology", {"epistle", "core", "topology"}, {}},
      // Tables and JSON know values, not dispatchers.
      {"src/report", {"epistle", "core", "report"}, {}},
      {"src/routing", {"epistle", "core", "topology", "routing"}, {}},
      {"src/layout", {"epistle", "core", "layout"}, {}},
      {"src/group", {"epistle", "core", "topology", "group"}, {}},
      {"src/fabric", {"epistle", "core", "group", "fabric"}, {}},
      {"src/launch", {"epistle", "core", "topology", "group", "launch"}, {}},
      {"src/gpu", {"epistle", "core", "topology", "group", "gpu"}, {}},
      // What all dispatchers share knows none of them, and no device.
      {"src/dispatch/call",
       {"epistle", "core", "topology", "layout", "group", "dispatch"},
       {"dispatch/host/", "dispatch/cuda/", "dispatch/reference/", "dispatch/registry/"}},
      // What dispatchers of either device share that cross domains by links.
      {"src/dispatch/link",
       {"epistle", "core", "topology", "layout", "group", "fabric", "dispatch"},
       {"dispatch/host/", "dispatch/cuda/", "dispatch/reference/", "dispatch/registry/", "dispatch/auto/"}},
      // The oracle stands on its own: a mistake in a fast path must not reach it.
      {"src/dispatch/reference",
       {"epistle", "core", "topology", "layout", "group", "dispatch"},
       {"dispatch/host/direct/", "dispatch/host/low_latency/", "dispatch/host/alltoall/", "dispatch/host/hybrid/",
        "dispatch/link/", "dispatch/cuda/", "dispatch/registry/"}},
      {"src/dispatch/host/engine",
       {"epistle", "core", "topology", "layout", "group", "fabric", "dispatch"},
       {"dispatch/host/direct/", "dispatch/host/low_latency/", "dispatch/host/alltoall/", "dispatch/host/hybrid/",
        "dispatch/cuda/", "dispatch/reference/", "dispatch/registry/", "dispatch/auto/"}},
      {"src/dispatch/host",
       {"epistle", "core", "topology", "layout", "group", "fabric", "dispatch"},
       {"dispatch/cuda/", "dispatch/reference/", "dispatch/registry/"}},
      // What the dispatchers of a GPU share knows none of them.
      {"src/dispatch/cuda/device", {"epistle", "core", "layout", "dispatch"}, not_of_shared_gpu_code},
      {"src/dispatch/cuda/engine",
       {"epistle", "core", "topology", "layout", "group", "gpu", "dispatch"},
       not_of_shared_gpu_code},
      {"src/dispatch/cuda/prepare", {"epistle", "core", "layout", "dispatch"}, not_of_shared_gpu_code},
      {"src/dispatch/cuda/quotas", {"epistle", "core", "layout", "dispatch"}, not_of_shared_gpu_code},
      {"src/dispatch/cuda",
       {"epistle", "core", "topology", "layout", "group", "gpu", "dispatch"},
       {"dispatch/host/", "dispatch/reference/", "dispatch/registry/"}},
      // Made of two others, on either device.
      {"src/dispatch/auto",
       {"epistle", "core", "layout", "group", "dispatch"},
       {"dispatch/reference/", "dispatch/registry/"}},
      // The top room of dispatch: it knows them all.
      {"src/dispatch/registry", {"epistle", "core", "topology", "layout", "group", "gpu", "dispatch"}, {}},
      {"src/measure",
       {"epistle", "core", "topology", "routing", "layout", "group", "fabric", "gpu", "dispatch", "measure"},
       {}},
      {"src/cost", {"epistle", "core", "topology", "routing", "layout", "group", "dispatch", "measure", "cost"}, gpu},
      // The decisions share a row: none may use another, and none may see CUDA.
      {"src/select",
       {"epistle", "core", "topology", "routing", "layout", "group", "dispatch", "measure", "cost", "select"},
       gpu},
      {"src/tune",
       {"epistle", "core", "topology", "routing", "layout", "group", "dispatch", "measure", "cost", "tune"},
       gpu},
      {"src/plan",
       {"epistle", "core", "topology", "routing", "layout", "group", "dispatch", "measure", "cost", "plan"},
       gpu},
      {"src/balance",
       {"epistle", "core", "topology", "routing", "layout", "group", "dispatch", "measure", "cost", "balance"},
       gpu},
      // It plays what plans and balancers decide, so it stands above them; it decides nothing.
      {"src/simulate",
       {"epistle", "core", "topology", "routing", "layout", "group", "dispatch", "measure", "cost", "plan", "balance",
        "simulate"},
       gpu},
      // Weights on their way between ranks, in the order of the balancer's copies.
      {"src/migrate/cuda",
       {"epistle", "core", "group", "gpu", "dispatch", "migrate"},
       {"dispatch/host/", "dispatch/reference/", "dispatch/registry/", "dispatch/auto/"}},
      {"src/migrate", {"epistle", "core", "group", "balance", "migrate"}, gpu},
      // What C++ users see, how a rank leaves its group, and placements for engines.
      {"python/src", {"epistle", "group", "balance"}, {}},
      {"apps/epistle",
       {"epistle", "core", "topology", "routing", "layout", "group", "fabric", "launch", "gpu", "dispatch", "measure",
        "cost", "select", "tune", "plan", "balance", "simulate", "migrate", "report"},
       {}},
  };
  return table;
}

std::vector<std::string> check_includes(const SourceFile& file) {
  const Layer* layer = find_layer(file);
  std::vector<std::string> violations;
  for (const Include& include : find_includes(file)) {
    if (const auto reason = check_include(file, layer, include)) {
      violations.push_back(file.path + ":" + std::to_string(include.line) + ": \"" + include.path + "\": " + *reason);
    }
  }
  return violations;
}

}  // namespace repo_test
