#include "select/check/yaml.hpp"

#include <map>
#include <sstream>

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include "epistle/error.hpp"

namespace epistle::check {
namespace {

/// Chains of aliases longer than this are no configuration.
constexpr int kMaxAliasChain = 16;

/// "a:" is three nodes of two bytes; no text has more than these.
constexpr std::size_t kMaxNodesPerByte = 4;

std::int32_t line_of(const YAML::Mark& mark) { return mark.line + 1; }

class Builder final : public YAML::EventHandler {
 public:
  Builder(YamlTree& tree, std::size_t max_nodes, const std::string& file)
      : tree_(tree), max_nodes_(max_nodes), file_(file) {}

  void OnDocumentStart(const YAML::Mark& /*mark*/) override { anchors_.clear(); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override { add(YamlKind::kNull, mark, anchor); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const std::size_t node = add(YamlKind::kAlias, mark, 0);
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) {
      tree_.nodes[node].kind = YamlKind::kNull;
    } else {
      tree_.nodes[node].target = found->second;
    }
  }
  void OnScalar(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                const std::string& value) override {
    const std::size_t node = add(YamlKind::kScalar, mark, anchor);
    tree_.nodes[node].text = value;
    tree_.nodes[node].block = value.find('\n') != std::string::npos;
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value /*style*/) override {
    open_.push_back(add(YamlKind::kSequence, mark, anchor));
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value /*style*/) override {
    open_.push_back(add(YamlKind::kMap, mark, anchor));
  }
  void OnMapEnd() override { open_.pop_back(); }

 private:
  std::size_t add(YamlKind kind, const YAML::Mark& mark, YAML::anchor_t anchor) {
    const std::size_t node = tree_.nodes.size();
    // The parser reads the end of some broken documents again and again.
    if (node >= max_nodes_)
      throw Error(ErrorCode::kCorruptInput, fmt::format("{}:{}: the document does not end", file_, line_of(mark)));
    tree_.nodes.push_back({.kind = kind, .line = line_of(mark)});
    if (open_.empty()) {
      tree_.documents.push_back(node);
    } else {
      tree_.nodes[open_.back()].children.push_back(node);
    }
    if (anchor != 0) anchors_[anchor] = node;
    return node;
  }

  YamlTree& tree_;
  std::size_t max_nodes_;
  const std::string& file_;
  std::vector<std::size_t> open_;
  std::map<YAML::anchor_t, std::size_t> anchors_;
};

}  // namespace

const YamlNode& YamlTree::at(std::size_t node) const {
  static const YamlNode kNothing;
  for (int step = 0; step < kMaxAliasChain; ++step) {
    if (nodes[node].kind != YamlKind::kAlias) return nodes[node];
    node = nodes[node].target;
  }
  return kNothing;
}

YamlTree parse_yaml(std::string_view text, const std::string& file) {
  YamlTree tree;
  Builder builder(tree, kMaxNodesPerByte * (text.size() + kMaxNodesPerByte), file);
  std::istringstream stream{std::string(text)};
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    // what() repeats the place in its own way.
    throw Error(ErrorCode::kCorruptInput, fmt::format("{}:{}: {}", file, line_of(error.mark), error.msg));
  }
  return tree;
}

}  // namespace epistle::check
