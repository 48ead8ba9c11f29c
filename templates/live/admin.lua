-- The admin socket: changes, the version, and what is under way.


local function answer(status, text)
    ngx.status = status
    ngx.header.content_type = "text/plain"
    ngx.print(text)
end


-- "PID REQUESTS WEBSOCKETS" of each of these workers, at these addresses or at all
local function in_flight()
    local arguments, lines = ngx.req.get_uri_args(0), {}
    local function each(value)
        return type(value) == "table" and value or { value }
    end
    local every = not arguments.address and counts:get_keys(0)
    for _, pid in ipairs(each(arguments.pid)) do
        local found = { r = 0, u = 0 }
        local function add(kind, key)
            local number = counts:get(key)
            found[kind] = found[kind] + (number and number_of(counter_at(number)) or 0)
        end
        for _, key in ipairs(every or {}) do
            local kind, whose = key:match("^([ru]) (%d+) ")
            if whose == pid then
                add(kind, key)
            end
        end
        for _, address in ipairs(every and {} or each(arguments.address)) do
            add("r", "r " .. pid .. " " .. address)
            add("u", "u " .. pid .. " " .. address)
        end
        lines[#lines + 1] = pid .. " " .. found.r .. " " .. found.u
    end
    return table.concat(lines, "\n")
end


-- "VERSION WRITES"
local function state()
    return (routes:get("version") or "") .. " " .. (routes:get("writes") or 0)
end


-- One at a time, of all workers.  It names the number of writes that it knows of: one that comes late, when he who sent it
-- gave up and wrote something else, is refused.  The version would not do for that: it may be what it was, put back.
local function change(body)
    local too_late = ngx.now() + 5
    while true do
        local ok, why = routes:safe_add("writing", true, 30) -- it ends by itself, for its writer may be killed
        if ok or why ~= "exists" then
            break
        end
        if ngx.now() > too_late then
            return answer(503, "somebody else is changing them")
        end
        ngx.sleep(0.005)
    end
    local from = ngx.var.arg_from
    if from and tonumber(from) ~= (routes:get("writes") or 0) then
        routes:delete("writing")
        return answer(409, state())
    end
    local ok, why = pcall(take, body, ngx.var.arg_version, ngx.var.arg_only == "1")
    if not ok then
        -- some lines may be written and some lost: what is here is no version that anybody knows
        routes:delete("version")
        announce()
    end
    routes:delete("writing")
    answer(ok and 200 or 507, ok and state() or tostring(why))
end


-- content_by_lua of the admin socket, which lies in a directory of the router's own
function live.admin()
    if ngx.req.get_method() == "GET" then
        if ngx.var.uri == "/in-flight" and head.uncounted == 0 then
            return answer(200, in_flight())
        elseif ngx.var.uri == "/in-flight" then
            return answer(507, "there was no room to count in: since then nobody knows")
        end
        return answer(200, state())
    end
    ngx.req.read_body()
    local body = ngx.req.get_body_data()
    if not body and ngx.req.get_body_file() then
        local file = io.open(ngx.req.get_body_file())
        body = file:read("*a")
        file:close()
    end
    change(body or "")
end


return live
