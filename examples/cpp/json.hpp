// json.hpp - cJSON's objects, freed when they go out of scope.
#pragma once

#include <memory>

#include "shared/third_party/cjson/cJSON.h"

namespace json {

struct Delete {
  void operator()(cJSON *object) const { cJSON_Delete(object); }
  void operator()(char *text) const { cJSON_free(text); }
};

using Object = std::unique_ptr<cJSON, Delete>;
using Text = std::unique_ptr<char, Delete>;

}  // namespace json
