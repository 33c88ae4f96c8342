// Queries as short texts: "hw=h100-hgx ep=16 model=qwen3-30b-a3b assume=deepep,hybridep".
#pragma once

#include <set>
#include <sstream>
#include <stdexcept>
#include <string>

#include "select/backends.hpp"
#include "select/query.hpp"
#include "select/select.hpp"
#include "topology/cluster.hpp"

namespace epistle::test {

inline void set_assumed(SelectQuery& query, const std::string& list) {
  std::stringstream stream(list);
  for (std::string name; std::getline(stream, name, ',');) {
    if (name == "all") {
      for (const SelectBackend& backend : select_backends()) query.available.insert(std::string(backend.name));
    } else if (name != "none") {
      query.available.insert(std::string(find_backend(name).name));
    }
  }
}

inline void set_word(SelectQuery& query, const std::string& name, const std::string& value) {
  if (name == "hw") {
    query.cluster = find_cluster(value);
  } else if (name == "ep") {
    query.ep = std::stoi(value);
  } else if (name == "model") {
    query.model = find_select_model(value);
  } else if (name == "hidden") {
    query.model.hidden = std::stoi(value);
  } else if (name == "experts") {
    query.model.num_experts = std::stoi(value);
  } else if (name == "topk") {
    query.model.top_k = std::stoi(value);
  } else if (name == "assume") {
    set_assumed(query, value);
  } else if (name == "tokens") {
    query.tokens_per_rank = std::stoi(value);
  } else if (name == "phase") {
    query.phase = value == "decode" ? WorkPhase::kDecode : WorkPhase::kPrefill;
  } else if (name == "precision") {
    query.precision = value == "fp8" ? Precision::kFp8 : Precision::kBf16;
  } else if (name == "fabric") {
    query.fabric = Fabric::kEfa;
  } else if (name == "memory") {
    query.memory_tight = true;
  } else if (name == "unequal") {
    query.unequal_tokens = true;
  } else if (name == "megatron") {
    query.megatron = *parse_version(value);
  } else if (name == "domain") {
    query.cluster.constant(ClusterField::kGpusPerDomain).value = std::stoi(value);
  } else if (name == "nics") {
    query.cluster.constant(ClusterField::kNicsPerGpu).value = std::stoi(value);
  } else {
    throw std::invalid_argument(name);
  }
}

/// H100, EP 16, Qwen3-30B, bf16, training, nothing installed, unless the text says otherwise.
[[nodiscard]] inline SelectFacts facts_of(const std::string& text) {
  SelectQuery query;
  query.cluster = find_cluster("h100-hgx");
  query.ep = 16;
  query.model = find_select_model("qwen3-30b-a3b");
  std::stringstream stream(text);
  for (std::string word; stream >> word;) {
    const std::size_t equals = word.find('=');
    set_word(query, word.substr(0, equals), equals == std::string::npos ? "" : word.substr(equals + 1));
  }
  return make_facts(std::move(query));
}

[[nodiscard]] inline Selection select_for(const std::string& text) { return select_dispatcher(facts_of(text)); }

}  // namespace epistle::test
