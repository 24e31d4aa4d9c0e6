-- Lets a request through only if it is one that the models take: their tensors with their types and shapes, their
-- parameters, and as many bytes as those say. The server (before 26.05) ends at JSON that is nested too deep and at shapes
-- that are too large, and its shared memory is open to every caller.

local contract = require "contract" -- written from the models' contract when the repository was exported
local json = require "strict_json"

local M = {}

local function refuse(status, message)
  ngx.status = status
  ngx.header.content_type = "application/json"
  ngx.say('{"error": "' .. message .. '"}')
  ngx.exit(status)
end

-- Raised by the checks below, and caught in M.request: a table with the message.
local function need(condition, message)
  if not condition then error({ message = message }, 0) end
  return condition
end

local function check_id(value)
  need(value.type == "string" and value.text and value.text:find "^[ -~]*$$", "'id' is no short text of ASCII")
end

local function is_whole(value, least, most)
  return value and value.type == "number" and value.value % 1 == 0 and value.value >= least and value.value <= most
end

local function check_parameters(value, names)
  need(value.type == "object", "'parameters' is not an object")
  for name, each in pairs(value.keys) do
    need(names[name], "a parameter is unknown here")
    need(each.type == "true" or each.type == "false", "a parameter is not true or false")
  end
end

-- Whether a JSON value is one of a datatype of the contract. The server answers others with a fault of its own.
local function is_of(value, datatype)
  if datatype == "BYTES" then return value.type == "string" end
  if datatype == "BOOL" then return value.type == "true" or value.type == "false" end
  if value.type ~= "number" then return false end
  if datatype == "FP64" then return math.abs(value.value) < math.huge end
  if datatype == "FP32" then return math.abs(value.value) < 3.4e38 end
  local digits = value.text:match "^%-?(%d+)$$"
  if datatype == "INT32" then return digits and math.abs(value.value) < 2147483648 end
  -- UINT64: more digits than a number of Lua holds.
  return digits == value.text and (#digits < 20 or (#digits == 20 and digits <= "18446744073709551615"))
end

-- How many values of a datatype there are in `value`, which may be nested arrays.
local function count(value, datatype)
  if value.type ~= "array" then
    need(is_of(value, datatype), "a tensor has values of another type, or beyond its range")
    return 1
  end
  local total = 0
  for _, each in ipairs(value) do total = total + count(each, datatype) end
  return total
end

-- The body of `generate` and `generate_stream`: tensors by name.
local function check_generate(body)
  for name, value in pairs(body.keys) do
    local tensor = contract.inputs[name]
    if tensor then
      local values = count(value, tensor.datatype)
      need(values >= 1 and values <= tensor.most, "a tensor has more or fewer values than it takes")
    elseif name == "parameters" then
      check_parameters(value, contract.parameters)
    elseif name == "id" then
      check_id(value)
    else
      need(contract.parameters[name], "the request has an unknown key")
      need(value.type == "true" or value.type == "false", "a parameter is not true or false")
    end
  end
end

-- Bytes of a BYTES tensor: `elements` times a length in 4 bytes and so many bytes.
local function check_strings(data, start, size, elements)
  local position, stop = start, start + size
  for _ = 1, elements do
    need(position + 4 <= stop, "a tensor's bytes are fewer than its shape says")
    local a, b, c, d = data:byte(position, position + 3)
    position = position + 4 + a + 256 * b + 65536 * c + 16777216 * d
  end
  need(position == stop, "a tensor's bytes are not what its shape says")
end

local function check_input(input, seen)
  need(input.type == "object", "an input is not an object")
  local keys = input.keys
  for name in pairs(keys) do need(contract.input_keys[name], "an input has an unknown key") end
  local name = keys.name and keys.name.type == "string" and keys.name.text
  local tensor = need(name and contract.inputs[name], "an input has no name, or an unknown one")
  need(not seen[name], "an input is given twice")
  seen[name] = true
  need(keys.datatype and keys.datatype.text == tensor.datatype, "an input has another datatype")
  local shape = keys.shape
  need(shape and shape.type == "array" and #shape == 2, "an input's shape has not two sides")
  need(is_whole(shape[1], 1, 1), "an input's batch is not 1")
  need(is_whole(shape[2], tensor.least, tensor.most), "an input's shape is not the contract's")
  return tensor, shape[2].value
end

-- The body of `infer`; `data` holds what the inputs' binary_data_size refers to, from `start` on.
local function check_infer(body, data, start)
  for name in pairs(body.keys) do need(contract.infer_keys[name], "the request has an unknown key") end
  local keys = body.keys
  if keys.id then check_id(keys.id) end
  if keys.parameters then check_parameters(keys.parameters, contract.infer_parameters) end
  need(keys.inputs and keys.inputs.type == "array", "'inputs' is not an array")
  local seen = {}
  for _, input in ipairs(keys.inputs) do
    local tensor, elements = check_input(input, seen)
    local parameters = input.keys.parameters
    if parameters then
      need(parameters.type == "object" and not input.keys.data, "an input has both bytes and data")
      for name in pairs(parameters.keys) do need(name == "binary_data_size", "an input's parameter is unknown here") end
      local size = parameters.keys.binary_data_size
      need(is_whole(size, 0, #data - start + 1), "an input has more bytes than the request")
      if tensor.datatype == "BYTES" then
        check_strings(data, start, size.value, elements)
      else
        need(size.value == elements * tensor.bytes, "a tensor's bytes are not what its shape says")
      end
      start = start + size.value
    else
      need(input.keys.data and input.keys.data.type == "array", "an input has no data")
      need(count(input.keys.data, tensor.datatype) == elements, "an input's data is not what its shape says")
    end
  end
  need(start == #data + 1, "the request has bytes of no input")
  local outputs = keys.outputs or { type = "array" }
  need(outputs.type == "array", "'outputs' is not an array")
  local asked = {}
  for _, output in ipairs(outputs) do
    local name = need(output.type == "object" and output.keys.name and output.keys.name.text, "an output has no name")
    need(contract.outputs[name] and not asked[name], "an output is unknown or asked for twice")
    asked[name] = true
    for key in pairs(output.keys) do need(key == "name" or key == "parameters", "an output has an unknown key") end
    if output.keys.parameters then check_parameters(output.keys.parameters, { binary_data = true }) end
  end
end

local function read_body()
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  if body then return body end
  local name = ngx.req.get_body_file() -- large ones
  if not name then return "" end
  local file = need(io.open(name, "rb"), "the request cannot be read")
  body = file:read "*a"
  file:close()
  return body
end

local function check_body(verb, headers)
  local data = read_body()
  local length = headers["inference-header-content-length"]
  local head = #data
  if length ~= nil then
    need(verb == "infer", "Inference-Header-Content-Length is for infer")
    need(type(length) == "string" and length:find "^%d%d?%d?%d?%d?%d?%d?%d?$$", "Inference-Header-Content-Length is no length")
    head = need(tonumber(length) <= #data and tonumber(length), "Inference-Header-Content-Length is more than there is")
  end
  local body, problem = json.parse(head == #data and data or data:sub(1, head))
  need(body, problem)
  need(body.type == "object", "the request is not an object")
  if verb == "infer" then
    check_infer(body, data, head + 1)
  else
    check_generate(body)
  end
end

-- For POST to a model. What it lets through is what the server gets.
function M.request(verb)
  if ngx.req.get_method() ~= "POST" then return refuse(405, "send this with POST") end
  if ngx.var.args then return refuse(400, "this path takes no query") end
  local headers = ngx.req.get_headers(100)
  local encoding = headers["content-encoding"]
  if encoding and encoding ~= "identity" then return refuse(415, "send the request without Content-Encoding") end
  local passed, fault = pcall(check_body, verb, headers)
  if passed then return end
  if type(fault) == "table" and fault.message then return refuse(400, fault.message) end
  ngx.log(ngx.ERR, "check.lua: ", fault)
  refuse(400, "the request cannot be checked")
end

-- For GET.
function M.question()
  if ngx.req.get_method() ~= "GET" then return refuse(405, "send this with GET") end
end

return M
