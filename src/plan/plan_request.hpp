// What a plan is asked for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cost/work.hpp"
#include "plan/plan_model.hpp"
#include "topology/cluster.hpp"

namespace epistle {

enum class Workload : std::int32_t { kPrefill, kDecode, kTraining };
enum class Objective : std::int32_t {
  kLatency,     ///< the shortest step
  kThroughput,  ///< the most tokens per second and GPU
};

struct PlanRequest {
  PlanModel model;
  Cluster cluster;
  Workload workload = Workload::kDecode;
  Objective objective = Objective::kThroughput;
  double tokens_per_gpu = 128;   ///< of one step; in decode one per sequence
  double global_tokens = 0;      ///< of one step of an EP group, instead: a batch that does not grow with it
  double context_tokens = 4096;  ///< cached or seen by attention, per sequence
  ExpertType precision = ExpertType::kFp8Block;
  std::vector<double> popularity;        ///< of experts; empty = even
  std::int32_t num_gpus = 0;             ///< in all; 0 = as many as a plan takes
  double max_step_us = 0;                ///< TPOT or TTFT that must be kept; 0 = none
  double memory_share = 0.9;             ///< of a GPU's memory that a plan may use
  std::vector<std::string> dispatchers;  ///< names of exchange modes that may be used; empty = all
};

}  // namespace epistle
