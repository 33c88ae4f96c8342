// The two cost curves: an exchange of rows between ranks, and the grouped GEMMs of the experts. Pure functions; times
// in microseconds, amounts in rows and bytes, rates in bytes per microsecond (1 GB/s = 1000 bytes per microsecond).
#pragma once

namespace epistle {

inline constexpr double kBytesPerUsOfBytesPerS = 1e-6;

/// What the busiest rank has to move in one call.
struct ExchangeWork {
  double num_domains = 1;  ///< scale-up domains of the group
  double ranks_per_domain = 1;
  double num_sms = 1;
  double row_bytes = 0;
  double rank_rows = 0;          ///< rows that SMs handle for ranks: one per (token, rank), or one per token
  double domain_rows = 0;        ///< rows that they forward between domains: one per (token, domain)
  double crossing_tokens = 0;    ///< tokens of a rank where there are several domains
  bool host_waits = false;       ///< for counts that say how much memory to take, before rows move
  bool counts_exchanged = true;  ///< false: of a call that knows what it receives, so that counts are not waited for
  double link_bytes = 0;         ///< of them, over the links of the domain
  double self_bytes = 0;         ///< of them, to the rank itself
  double network_bytes = 0;      ///< of them, over the network
  double link_bytes_per_us = 1;  ///< nominal, per direction
  double network_bytes_per_us = 1;
};

/// Constants of one library's exchange.
struct ExchangeTerms {
  double start_us = 0;                ///< launch, count exchange, synchronisation: there for one token
  double row_pass_us_per_byte = 0;    ///< of one row through one warp: there for one token
  double rank_doubling_us = 0;        ///< for every doubling of the ranks of a domain
  double network_us = 0;              ///< of the exchange of counts, for leaving the domain at all
  double domain_doubling_us = 0;      ///< for every doubling of the domains
  double host_wait_us = 0;            ///< where the host waits for counts
  double far_domain_us = 0;           ///< for every domain but one, where they are served in turn
  double counts_domain_us = 0;        ///< likewise, of the exchange of counts
  double row_sm_us = 0;               ///< of one SM, for every row whatever its size
  double sm_bytes_per_us = 1;         ///< of one SM
  double domain_row_share = 1;        ///< cost of a row between domains, in rows between ranks
  double token_row_share = 0;         ///< cost of a token besides its rows where there are several domains, likewise
  double link_efficiency = 1;         ///< of the nominal rate
  double link_loss_per_doubling = 0;  ///< of the link, for every doubling of the ranks of a domain
  double network_efficiency = 1;
  double self_share = 0;    ///< cost of a byte to oneself, in bytes over the link
  double overlap_norm = 4;  ///< of the parts that overlap: 1 = one after the other, large = the slowest alone
  double start_norm = 1;    ///< the same for the fixed part and the moving part
};

/// The parts of an exchange, so that what binds can be named.
struct ExchangeTimes {
  double fixed_us = 0;
  double sm_us = 0;
  double link_us = 0;
  double network_us = 0;
  double total_us = 0;
};

/// (a^p + b^p + ...)^(1/p) of non-negative parts.
[[nodiscard]] double overlapped_us(double norm, double a_us, double b_us, double c_us = 0) noexcept;

[[nodiscard]] ExchangeTimes exchange_time(const ExchangeWork& work, const ExchangeTerms& terms) noexcept;

/// What the grouped GEMMs (gate, up and down projection) of the busiest rank have to do.
struct GemmWork {
  double rows = 0;            ///< (token, expert) pairs of the rank
  double active_experts = 0;  ///< experts of the rank that get any
  double global_rows = 0;     ///< pairs of all ranks: some kernels look at each
  double hidden = 0;
  double expert_ffn = 0;
  double weight_bytes_per_element = 2;
  double peak_flops_per_us = 1;
  double hbm_bytes_per_us = 1;
  double cache_bytes =
      0;  ///< of the GPU, where the last run of the same weights leaves them; 0 = they come from memory
};

struct GemmTerms {
  double start_us = 0;               ///< all launches
  double compute_efficiency = 1;     ///< of the peak, with full tiles
  double tile_rows = 64;             ///< rows below which an expert costs as if it had them
  double weight_efficiency = 1;      ///< of the memory rate, reading weights
  double activation_efficiency = 1;  ///< of the memory rate, moving rows
  double global_row_share = 0;       ///< of a row's bytes, that every row of all ranks costs here
  double overlap_norm = 3;           ///< of computing and reading weights; rows are moved by kernels of their own
  double cached_byte_share = 1;      ///< cost of a byte of weights in the cache, in bytes of memory
};

struct GemmTimes {
  double fixed_us = 0;
  double compute_us = 0;
  double weights_us = 0;
  double activations_us = 0;
  double total_us = 0;
};

[[nodiscard]] GemmTimes gemm_time(const GemmWork& work, const GemmTerms& terms) noexcept;

}  // namespace epistle
