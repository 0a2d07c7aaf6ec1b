package config

// relate adds to the schema what one key of a section demands of another, as far as
// validate refuses it and JSON Schema can say it.
func relate(s map[string]any) {
	section := func(path ...string) map[string]any {
		at := s
		for _, key := range path {
			if key == "*" {
				at = at["additionalProperties"].(map[string]any)
				continue
			}
			at = at["properties"].(map[string]any)[key].(map[string]any)
		}
		return at
	}
	needs := func(keys ...string) map[string]any { return map[string]any{"required": keys} }
	isOn := map[string]any{"properties": map[string]any{"dynamic": map[string]any{"const": true}}, "required": []string{"dynamic"}}

	section("listeners")["minProperties"], section("upstreams")["minProperties"] = 1, 1
	listener := section("listeners", "*")
	listener["required"] = []string{"listen"}
	listener["oneOf"] = []any{needs("upstream"), needs("rules")}
	section("listeners", "*", "proxy_protocol")["required"] = []string{"from"}

	up := section("upstreams", "*")
	up["oneOf"] = []any{needs("endpoints"), needs("srv"), isOn}
	up["if"] = map[string]any{"properties": map[string]any{"starttls": map[string]any{"not": map[string]any{"const": "none"}}}, "required": []string{"starttls"}}
	up["then"] = needs("tls")
	section("upstreams", "*", "health", "http")["required"] = []string{"port"}

	section("identities", "*")["oneOf"] = []any{needs("files"), needs("step"), needs("spiffe"), needs("kubernetes")}
	section("identities", "*", "files")["dependentRequired"] = map[string]any{"cert": []string{"key"}, "key": []string{"cert"}}
	section("identities", "*", "step")["required"] = []string{"url", "fingerprint", "names"}
	section("identities", "*", "spiffe")["required"] = []string{"socket"}
}
