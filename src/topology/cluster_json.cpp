#include <algorithm>
#include <optional>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "epistle/error.hpp"

#include "core/json_field.hpp"
#include "core/whole_file.hpp"
#include "topology/cluster.hpp"

namespace epistle {
namespace {

using ClusterJson = nlohmann::ordered_json;

constexpr std::array kLinks = {ScaleUpLink::kNvLink, ScaleUpLink::kInfinityFabric, ScaleUpLink::kPcie};
constexpr std::array<std::string_view, 7> kTextFields = {"name",   "title", "gpu_architecture", "link", "date",
                                                         "preset", "source"};

/// The fields of one file, read one by one into a cluster.
class ClusterReader {
 public:
  ClusterReader(const ClusterJson& document, std::string_view file) : document_(document), file_(file) {}

  Cluster read() {
    if (!document_.is_object()) fail("the document", "must be an object of fields");
    refuse_unknown_fields();
    Cluster cluster;
    const std::string preset = text("preset").value_or("");
    if (!preset.empty()) cluster = find_preset(preset);
    cluster.name = text("name").value_or(cluster.name);
    cluster.title = text("title").value_or(cluster.title.empty() ? cluster.name : cluster.title);
    cluster.gpu_architecture =
        text("gpu_architecture").value_or(cluster.gpu_architecture.empty() ? "unknown" : cluster.gpu_architecture);
    if (const auto link = text("link")) cluster.link = parse_link(*link);
    for (const ClusterFieldInfo& info : cluster_fields()) read_constant(info, preset.empty(), cluster);
    try {
      check_cluster(cluster);
    } catch (const Error& error) {
      throw Error(ErrorCode::kCorruptInput, fmt::format("{}: {}", file_, error.message()));
    }
    return cluster;
  }

 private:
  [[noreturn]] void fail(std::string_view field, std::string_view reason) const {
    throw Error(ErrorCode::kCorruptInput, fmt::format("{}: {} {}", file_, field, reason));
  }

  void refuse_unknown_fields() const {
    for (const auto& [name, value] : document_.items()) {
      const auto fields = cluster_fields();
      const bool quantity = std::any_of(fields.begin(), fields.end(),
                                        [&name = name](const ClusterFieldInfo& info) { return info.name == name; });
      if (quantity || std::find(kTextFields.begin(), kTextFields.end(), name) != kTextFields.end()) continue;
      fail(name, "is not a field of a cluster; see docs/plan.md for those there are");
    }
  }

  [[nodiscard]] std::optional<std::string> text(const std::string& field) const {
    const auto found = document_.find(field);
    if (found == document_.end()) return std::nullopt;
    if (!found->is_string()) fail(field, "must be a text");
    return found->get<std::string>();
  }

  [[nodiscard]] Cluster find_preset(const std::string& name) const {
    try {
      return find_cluster(name);
    } catch (const Error& error) {
      fail("preset", error.message());
    }
  }

  [[nodiscard]] ScaleUpLink parse_link(const std::string& name) const {
    for (const ScaleUpLink link : kLinks) {
      if (to_string(link) == name) return link;
    }
    fail("link", fmt::format("is '{}'; it must be nvlink, infinity_fabric or pcie", name));
  }

  void read_constant(const ClusterFieldInfo& info, bool required, Cluster& cluster) const {
    const std::string field(info.name);
    const auto found = document_.find(field);
    if (found == document_.end()) {
      if (required) fail(field, "is missing; give it, or a preset to take it from");
      return;
    }
    const bool detailed = found->is_object();
    if (detailed && !found->contains("value")) fail(field, "is an object without a value");
    const ClusterJson& value = detailed ? found->at("value") : *found;
    if (!value.is_number() && !value.is_boolean()) fail(field, "must be a number");
    Constant& constant = cluster.constant(info.field);
    constant.value = value.is_boolean() ? static_cast<double>(value.get<bool>()) : value.get<double>();
    constant.source = describe(*found, detailed, "source").value_or(text("source").value_or(std::string(file_)));
    constant.date = describe(*found, detailed, "date").value_or(text("date").value_or(""));
  }

  [[nodiscard]] std::optional<std::string> describe(const ClusterJson& constant, bool detailed,
                                                    const std::string& name) const {
    if (!detailed || !constant.contains(name)) return std::nullopt;
    if (!constant.at(name).is_string()) fail(name, "of a quantity must be a text");
    return constant.at(name).get<std::string>();
  }

  const ClusterJson& document_;
  std::string_view file_;
};

}  // namespace

Cluster parse_cluster(std::string_view text, std::string_view file) {
  const ClusterJson document = parse_json(text, std::string(file));
  return ClusterReader(document, file).read();
}

Cluster read_cluster(const std::string& file) { return parse_cluster(read_whole_file(file), file); }

}  // namespace epistle
