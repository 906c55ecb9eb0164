// sampling.hpp - how the next token is chosen.
#pragma once

#include "genai.hpp"
#include "options.hpp"

// Set it by the options, else by what the folder recommends. Where that is nothing, tokens are drawn in a
// `conversation`, at the values of `fairy2i chat`, and else the likeliest is taken, as `fairy2i generate` does.
void set_sampling(OgaGeneratorParams &params, const Options &options, bool conversation);
