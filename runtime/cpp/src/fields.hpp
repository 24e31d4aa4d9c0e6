// Typed access to untrusted JSON objects: every error names the field by its path.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "manifest_ranges.hpp"

namespace kontext {

// The JSON library's error without its prefix and without the offending bytes.
inline std::string reason(const nlohmann::json::exception& error) {
    if (const auto* where = dynamic_cast<const nlohmann::json::parse_error*>(&error))
        return "syntax error at byte " + std::to_string(where->byte);
    const std::string text = error.what();
    return text.substr(text.find(' ') + 1);  // after "[json.exception.…]"
}

// A text that a file's author chose, in a message: ASCII alone, and not all of a long one.
inline std::string in_quotes(const std::string& text) {
    const std::string escaped =
        nlohmann::json(text.substr(0, 80)).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
    return "'" + escaped.substr(1, escaped.size() - 2) + "'";
}

class Fields {
public:
    Fields(const nlohmann::json& object, std::string where) : data(object), where(std::move(where)) {}

    const nlohmann::json& data;
    const std::string where;

    Error error(const std::string& name, const std::string& what) const { return Error(where + name + " " + what); }

    const nlohmann::json& get(const std::string& name) const {
        const auto found = data.find(name);
        if (found == data.end()) throw error(name, "is missing");
        return *found;
    }

    Fields group(const std::string& name) const {
        const auto& value = get(name);
        if (!value.is_object()) throw error(name, "must be an object");
        return {value, where + name + "."};
    }

    std::string text(const std::string& name) const {
        const auto& value = get(name);
        if (!value.is_string() || value.get_ref<const std::string&>().empty())
            throw error(name, "must be a non-empty string");
        if (value.get_ref<const std::string&>().size() > 4 * most_characters)
            throw error(name, "has more than " + std::to_string(most_characters) + " characters");
        return value;
    }

    // A whole number in its range of `ranges()`, and of at least `least`.
    std::int64_t whole(const std::string& name, std::int64_t least = 0) const {
        const auto& value = get(name);
        const auto [low, high] = ranges().at(name);
        const double smallest = std::max(low, static_cast<double>(least));
        if (!is_whole(value, smallest, high))
            throw error(name, "must be a whole number from " + text_of(smallest) + " to " + text_of(high) + ", not " +
                                  shown(value));
        return value;
    }

    int small(const std::string& name, int least = 0) const { return static_cast<int>(whole(name, least)); }

    // A number in its range of `ranges()`.
    double number(const std::string& name) const {
        const auto& value = get(name);
        const auto [low, high] = ranges().at(name);
        if (!value.is_number() || !(low <= value.get<double>() && value.get<double>() <= high))
            throw error(name, "must be a number from " + text_of(low) + " to " + text_of(high) + ", not " + shown(value));
        return value;
    }

    // Whether a value is a whole number in the range of the field `name`.
    static bool in_range(const nlohmann::json& value, const std::string& name) {
        const auto [low, high] = ranges().at(name);
        return is_whole(value, low, high);
    }

private:
    static bool is_whole(const nlohmann::json& value, double low, double high) {
        return value.is_number_unsigned() && low <= value.get<double>() && value.get<double>() <= high;
    }

    static std::string text_of(double value) { return std::to_string(static_cast<std::int64_t>(value)); }

    static std::string shown(const nlohmann::json& value) {
        return value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).substr(0, 40);
    }
};

}  // namespace kontext
