// epistle models: the shapes of published models.
#include <memory>
#include <span>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "epistle/models.hpp"

#include "commands.hpp"
#include "json_option.hpp"
#include "json_text.hpp"
#include "output.hpp"
#include "report/table.hpp"

namespace epistle::cli {
namespace {

struct ModelsOptions {
  std::string name;
  std::string json_target;
};

std::int32_t num_moe_layers(const ModelPreset& model) { return model.num_layers - model.num_dense_first; }

std::string describe_groups(const ModelPreset& model) {
  return model.num_groups > 1 ? fmt::format("{} of {}", model.groups_per_token, model.num_groups) : "-";
}

Json to_json(const ModelPreset& model) {
  Json aliases = Json::array();
  std::string_view rest = model.aliases;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    aliases.push_back(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return {{"name", model.name},
          {"aliases", aliases},
          {"title", model.title},
          {"hidden", model.hidden},
          {"num_experts", model.num_experts},
          {"top_k", model.top_k},
          {"expert_ffn", model.expert_ffn},
          {"num_layers", model.num_layers},
          {"num_dense_first", model.num_dense_first},
          {"num_groups", model.num_groups},
          {"groups_per_token", model.groups_per_token},
          {"shared", model.shared},
          {"source", model.source}};
}

std::string render_list(std::span<const ModelPreset> models) {
  Table table({{"name", Align::kLeft},
               {"hidden", Align::kRight},
               {"experts", Align::kRight},
               {"top-k", Align::kRight},
               {"expert ffn", Align::kRight},
               {"layers", Align::kRight},
               {"moe layers", Align::kRight},
               {"groups", Align::kRight},
               {"shared", Align::kLeft},
               {"title", Align::kLeft}});
  for (const ModelPreset& model : models) {
    table.add_row({std::string(model.name), std::to_string(model.hidden), std::to_string(model.num_experts),
                   std::to_string(model.top_k), std::to_string(model.expert_ffn), std::to_string(model.num_layers),
                   std::to_string(num_moe_layers(model)), describe_groups(model), std::string(model.shared),
                   std::string(model.title)});
  }
  return table.render();
}

std::string render_one(const ModelPreset& model) {
  Table table({{"model", Align::kLeft}, {std::string(model.name), Align::kLeft}});
  table.add_row({"title", std::string(model.title)});
  table.add_row({"other names", model.aliases.empty() ? "-" : std::string(model.aliases)});
  table.add_row({"hidden", std::to_string(model.hidden)});
  table.add_row({"experts", std::to_string(model.num_experts)});
  table.add_row({"top-k", std::to_string(model.top_k)});
  table.add_row({"expert ffn", std::to_string(model.expert_ffn)});
  table.add_row({"layers", fmt::format("{}, {} of them with experts", model.num_layers, num_moe_layers(model))});
  table.add_row({"groups per token", describe_groups(model)});
  table.add_row({"shared experts", std::string(model.shared)});
  table.add_row({"source", std::string(model.source)});
  return table.render();
}

void show_models(const ModelsOptions& options) {
  const bool one = !options.name.empty();
  const std::span<const ModelPreset> models =
      one ? std::span<const ModelPreset>(&find_model(options.name), 1) : model_presets();
  if (!options.json_target.empty()) {
    Json list = Json::array();
    for (const ModelPreset& model : models) list.push_back(to_json(model));
    write_output(options.json_target, json_text({{"models", list}}));
  }
  if (options.json_target != kStdout) print(one ? render_one(models[0]) : render_list(models));
}

}  // namespace

void add_models_command(CLI::App& app, int& /*exit_code*/) {
  CLI::App* const command = app.add_subcommand("models", "List the shapes of published models");
  const auto options = std::make_shared<ModelsOptions>();
  command->add_option("name", options->name, "Show this model only (a name or an alias)")->type_name("NAME");
  add_json_option(*command, options->json_target);
  command->callback([options] { show_models(*options); });
}

}  // namespace epistle::cli
