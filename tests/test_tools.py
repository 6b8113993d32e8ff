"""Tools through the door."""

from tests.conftest import KEY_A, KEY_B, Client

TOOL = {"name": "search", "description": "Search the web"}


async def test_a_created_tool_is_where_its_location_says(client: Client) -> None:
    response = await client.post("/tools", json=TOOL, headers=KEY_A)
    assert response.status == 201
    created = await response.json()
    assert created["name"] == "search"
    assert created["created_at"] == created["updated_at"]
    assert await client.json("GET", response.headers["Location"]) == created


async def test_tenants_cannot_see_each_others_tools(client: Client) -> None:
    tool = await client.json("POST", "/tools", json=TOOL)
    assert (await client.json("GET", "/tools", KEY_B))["items"] == []
    for method in ("GET", "DELETE"):
        response = await client.request(method, f"/tools/{tool['id']}", headers=KEY_B)
        assert response.status == 404
    assert await client.json("GET", f"/tools/{tool['id']}") == tool
