#include "plan/plan_model.hpp"

#include "epistle/models.hpp"

#include "core/whole_file.hpp"
#include "plan/model_config.hpp"
#include "plan/preset_configs.hpp"

namespace epistle {
namespace {

constexpr double kMatrices = 3;  // gate, up, down

}  // namespace

double PlanModel::attention_elements() const noexcept {
  double sum = 0.0;
  for (const AttentionLayers& layers : attention) sum += layers.num_layers * layers.weight_elements;
  return sum;
}

double PlanModel::expert_elements() const noexcept { return expert_matrices * routed_hidden * expert_ffn; }

double PlanModel::dense_elements() const noexcept { return kMatrices * hidden * num_dense_layers() * dense_ffn; }

double PlanModel::route_elements() const noexcept {
  return hidden * (num_experts + (routed_hidden < hidden ? 2 * routed_hidden : 0.0));
}

double PlanModel::beside_elements() const noexcept {
  return num_moe_layers * (expert_matrices * hidden * shared_ffn + route_elements());
}

double PlanModel::embedding_elements() const noexcept { return (tied_embeddings ? 1 : 2) * vocabulary * hidden; }

double PlanModel::parameters() const noexcept {
  return active_parameters() + num_moe_layers * expert_elements() * (num_experts - top_k);
}

double PlanModel::active_parameters() const noexcept {
  return attention_elements() + dense_elements() + beside_elements() + embedding_elements() +
         num_moe_layers * expert_elements() * top_k;
}

PlanModel plan_model_of_preset(std::string_view name) {
  const ModelPreset& preset = find_model(name);
  PlanModel model = parse_plan_model(preset_config(preset.name), std::string(preset.name));
  model.name = std::string(preset.name);
  return model;
}

PlanModel read_plan_model(const std::string& name_or_file) {
  if (!name_or_file.ends_with(".json")) return plan_model_of_preset(name_or_file);
  return parse_plan_model(read_whole_file(name_or_file), name_or_file);
}

}  // namespace epistle
